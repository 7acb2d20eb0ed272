// Giving memory back: the part of Arena that undoes growth.
#include <iterator>
#include <utility>
#include <vector>

#include "core/arena.h"

namespace jax_bfc {

std::pair<Arena::Steps::const_iterator, Arena::Steps::const_iterator>
Arena::StepsIn(uintptr_t begin, uintptr_t end) const {
  const auto first = steps_.lower_bound(begin);
  auto last = first;
  while (last != steps_.end() && last->first + last->second <= end) ++last;
  return {first, last};
}

std::vector<ChunkId> Arena::LargeFreeChunks() const {
  std::vector<ChunkId> large;
  for (ChunkId id = bins_.BestFit(chunks_, source_->granularity());
       id != kNoChunk; id = bins_.Next(chunks_, id)) {
    large.push_back(id);
  }
  return large;
}

size_t Arena::TrimmableBytes() const {
  size_t total = 0;
  for (const ChunkId id : LargeFreeChunks()) {
    const auto [first, last] = StepsIn(chunks_[id].address, chunks_[id].end());
    for (auto step = first; step != last; ++step) total += step->second;
  }
  return total;
}

size_t Arena::Trim() {
  size_t total = 0;
  for (const ChunkId id : LargeFreeChunks()) {
    total += TrimRange(id, chunks_[id].address, chunks_[id].end());
  }
  return total;
}

std::vector<ChunkId> Arena::HoldFreeSteps() {
  std::vector<ChunkId> held;
  for (const ChunkId id : LargeFreeChunks()) {
    const auto [first, last] = StepsIn(chunks_[id].address, chunks_[id].end());
    if (first == last) continue;
    const auto& [address, bytes] = *std::prev(last);
    const uintptr_t begin = first->first;
    const size_t size = address + bytes - begin;
    held.push_back(HandOut(CutOut(id, begin, begin + size), size, 0));
  }
  return held;
}

size_t Arena::TrimHeld(ChunkId held) {
  const uintptr_t begin = chunks_[held].address;
  const uintptr_t end = chunks_[held].end();
  return TrimRange(FreeAndJoin(held), begin, end);
}

size_t Arena::TrimRange(ChunkId id, uintptr_t begin, uintptr_t end) {
  const auto [first, last] = StepsIn(begin, end);
  // The steps of one free chunk follow one another, so those that the source
  // takes back are one range; it ends where the source refuses.
  std::vector<std::pair<uintptr_t, size_t>> given_back;
  for (auto step = first; step != last; ++step) {
    if (source_->has_virtual_memory() &&
        !source_->Unmap(step->first, step->second)) {
      break;
    }
    given_back.emplace_back(*step);
  }
  if (given_back.empty()) return 0;
  begin = given_back.front().first;
  end = given_back.back().first + given_back.back().second;
  for (const auto& [address, bytes] : given_back) steps_.erase(address);
  stats_.steps -= given_back.size();
  stats_.trims += given_back.size();
  stats_.mapped_bytes -= end - begin;

  id = CutOut(id, begin, end);
  if (!source_->has_virtual_memory()) {  // the chunk is the whole region
    map_.Erase(chunks_, id);
    regions_.erase(begin);
    --stats_.regions;
    stats_.reserved_bytes -= end - begin;
    chunks_.GiveBack(id);
    source_->Release(begin, end - begin);
    return end - begin;
  }
  chunks_[id].state = ChunkState::kUnmapped;
  id = Coalesce(id);
  unmapped_.emplace(chunks_[id].address, id);
  return end - begin;
}

}  // namespace jax_bfc
