// Giving memory back: the part of Arena that undoes growth.
#include <iterator>
#include <utility>

#include "core/arena.h"

namespace jax_bfc {

std::pair<Arena::Steps::const_iterator, Arena::Steps::const_iterator>
Arena::StepsIn(uintptr_t begin, uintptr_t end) const {
  const Steps::Map& steps = steps_.entries();
  const auto first = steps.lower_bound(begin);
  auto last = first;
  while (last != steps.end() && last->first + last->second <= end) ++last;
  return {first, last};
}

template <typename Visit>
void Arena::ForEachLargeFreeChunk(Visit visit) const {
  ChunkId id = bins_.BestFit(chunks_, source_->granularity());
  while (id != kNoChunk) {
    // Pieces that stay free are smaller, so they come before the next.
    const size_t bytes = chunks_[id].bytes;
    const uintptr_t address = chunks_[id].address;
    visit(id);
    id = bins_.LowerBound(chunks_, bytes, address + 1);
  }
}

size_t Arena::TrimmableBytes() const noexcept {
  size_t total = 0;
  ForEachLargeFreeChunk([&](ChunkId id) {
    const auto [first, last] = StepsIn(chunks_[id].address, chunks_[id].end());
    for (auto step = first; step != last; ++step) total += step->second;
  });
  return total;
}

size_t Arena::Trim() noexcept {
  size_t total = 0;
  ForEachLargeFreeChunk([&](ChunkId id) {
    total += TrimRange(id, chunks_[id].address, chunks_[id].end());
  });
  return total;
}

ChunkId Arena::HoldFreeSteps() noexcept {
  ChunkId first_held = kNoChunk;
  ChunkId* link = &first_held;
  ForEachLargeFreeChunk([&](ChunkId id) {
    const auto [first, last] = StepsIn(chunks_[id].address, chunks_[id].end());
    if (first == last) return;
    const auto& [address, bytes] = *std::prev(last);
    const uintptr_t begin = first->first;
    const size_t size = address + bytes - begin;
    const ChunkId held = HandOut(CutOut(id, begin, begin + size), size, 0);
    *link = held;
    link = &chunks_[held].left;  // in no bin
    *link = kNoChunk;
  });
  return first_held;
}

size_t Arena::TrimHeld(ChunkId held) noexcept {
  const uintptr_t begin = chunks_[held].address;
  const uintptr_t end = chunks_[held].end();
  return TrimRange(FreeAndJoin(held), begin, end);
}

size_t Arena::TrimRange(ChunkId id, uintptr_t begin, uintptr_t end) {
  // The steps of one free chunk follow one another, so those that the source
  // takes back are one range; it ends where the source refuses.
  auto [step, last] = StepsIn(begin, end);
  if (step == last) return 0;
  begin = end = step->first;
  while (step != last) {
    if (source_->has_virtual_memory() &&
        !source_->Unmap(step->first, step->second)) {
      break;
    }
    end = step->first + step->second;
    step = steps_.Erase(step);
    --stats_.steps;
    ++stats_.trims;
  }
  if (begin == end) return 0;
  stats_.mapped_bytes -= end - begin;

  id = CutOut(id, begin, end);
  if (!source_->has_virtual_memory()) {  // the chunk is the whole region
    map_.Erase(chunks_, id);
    regions_.Erase(begin);
    --stats_.regions;
    stats_.reserved_bytes -= end - begin;
    chunks_.GiveBack(id);
    source_->Release(begin, end - begin);
    return end - begin;
  }
  chunks_[id].state = ChunkState::kUnmapped;
  id = Coalesce(id);
  unmapped_.Insert(chunks_[id].address, id);
  return end - begin;
}

}  // namespace jax_bfc
