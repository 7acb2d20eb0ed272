#include "core/arena.h"

#include <algorithm>
#include <new>
#include <utility>

namespace jax_bfc {

Arena::Arena(MemorySource* source, size_t limit_bytes, GrowthPolicy growth)
    : source_(source), limit_bytes_(limit_bytes), growth_(growth) {}

Arena::~Arena() {
  if (source_->has_virtual_memory()) {
    for (const auto& [address, bytes] : steps_.entries()) {
      source_->Unmap(address, bytes);
    }
  }
  for (const auto& [base, first] : regions_.entries()) {
    size_t bytes = 0;
    for (ChunkId id = first; id != kNoChunk; id = chunks_[id].next) {
      bytes += chunks_[id].bytes;
    }
    source_->Release(base, bytes);
  }
}

// ---------------------------------------------------------------------------
// Allocate and free.

ChunkId Arena::Allocate(size_t bytes, size_t alignment) noexcept {
  ChunkId id = TryAllocate(bytes, alignment);
  if (id == kNoChunk && Grow(bytes, alignment)) {
    id = TryAllocate(bytes, alignment);
  }
  return id;
}

ChunkId Arena::TryAllocate(size_t bytes, size_t alignment) noexcept {
  if (map_.size() > most_chunks_ && !ReserveRecords(0)) [[unlikely]] {
    return kNoChunk;
  }
  const size_t rounded = RoundedBytes(bytes);
  if (alignment <= kQuantum) [[likely]] {
    const ChunkId id = bins_.TakeBestFit(chunks_, rounded);
    if (id == kNoChunk) return kNoChunk;
    CountRemoved(id);
    return HandOut(id, rounded, bytes);
  }
  const Place place = FindPlace(rounded, alignment);
  if (place.chunk == kNoChunk) return kNoChunk;
  const ChunkId id =
      CutOut(place.chunk, place.address, place.address + rounded);
  return HandOut(id, rounded, bytes);
}

Arena::Place Arena::FindPlace(size_t bytes, size_t alignment) const {
  ChunkId id = bins_.BestFit(chunks_, bytes);
  if (id == kNoChunk) return {kNoChunk, 0};
  const auto fits = [&](ChunkId candidate, Place* place) {
    const Chunk& c = chunks_[candidate];
    *place = {candidate, RoundUp(c.address, alignment)};
    return place->address + bytes <= c.end();
  };
  Place place;
  constexpr int kCandidates = 32;
  for (int i = 0; i < kCandidates; ++i) {
    if (fits(id, &place)) return place;
    id = bins_.Next(chunks_, id);
    if (id == kNoChunk) return {kNoChunk, 0};
  }
  // Large enough wherever it starts.
  const ChunkId sure = bins_.BestFit(chunks_, bytes + alignment - kQuantum);
  if (sure != kNoChunk) {
    fits(sure, &place);
    return place;
  }
  // The last resort before growing, which costs more than a walk.
  for (; id != kNoChunk; id = bins_.Next(chunks_, id)) {
    if (fits(id, &place)) return place;
  }
  return {kNoChunk, 0};
}

ChunkId Arena::HandOut(ChunkId id, size_t bytes, size_t requested_bytes) {
  if (chunks_[id].bytes != bytes) {
    Insert(Split(id, chunks_[id].address + bytes));
  }
  Chunk& c = chunks_[id];
  c.state = ChunkState::kInUse;
  c.requested_bytes = requested_bytes;
  stats_.requested_bytes += requested_bytes;
  ++stats_.chunks_in_use;
  stats_.bytes_in_use += bytes;
  stats_.peak_bytes_in_use =
      std::max(stats_.peak_bytes_in_use, stats_.bytes_in_use);
  return id;
}

void Arena::Free(ChunkId id) noexcept { FreeAndJoin(id); }

ChunkId Arena::FreeAndJoin(ChunkId id) {
  Chunk& c = chunks_[id];
  stats_.requested_bytes -= c.requested_bytes;
  stats_.bytes_in_use -= c.bytes;
  --stats_.chunks_in_use;
  c.state = ChunkState::kFree;
  const ChunkId joined = Coalesce(id);
  Insert(joined);
  return joined;
}

// ---------------------------------------------------------------------------
// Chunks.

// Chunks are divided where a request starts or ends, and by giving back where a
// step does: what lies on either side of such a border is mapped on one side at
// least, so that there are at most two borders for each step. With two records
// in reserve for each step after every request, giving back finds them there,
// in whatever order it happens; the same holds for the list of what is unmapped,
// of which each begins at a region or behind a step.
[[gnu::cold]] bool Arena::ReserveRecords(size_t more_steps) noexcept {
  constexpr size_t kForOneRequest = 2;
  const size_t steps = stats_.steps + more_steps;
  const size_t regions = stats_.regions + more_steps;
  // A step may begin a region and divide what is unmapped.
  const size_t chunks = map_.size() + 2 * more_steps;
  const size_t reserve = kForOneRequest + 2 * steps;
  try {
    map_.Reserve(chunks + reserve);
    chunks_.Reserve(chunks + reserve);
    steps_.Reserve(steps);
    regions_.Reserve(regions);
    unmapped_.Reserve(steps + regions);
  } catch (const std::bad_alloc&) {
    return false;
  }
  most_chunks_ = chunks_.capacity() - reserve;
  return true;
}

ChunkId Arena::Split(ChunkId id, uintptr_t address) {
  const ChunkId upper = chunks_.Take();
  Chunk& c = chunks_[id];
  Chunk& u = chunks_[upper];
  u.address = address;
  u.bytes = c.end() - address;
  u.state = c.state;
  u.previous = id;
  u.next = c.next;
  if (c.next != kNoChunk) chunks_[c.next].previous = upper;
  c.next = upper;
  c.bytes -= u.bytes;
  map_.Insert(chunks_, upper);
  return upper;
}

ChunkId Arena::CutOut(ChunkId id, uintptr_t begin, uintptr_t end) {
  Remove(id);
  if (begin != chunks_[id].address) {
    const ChunkId upper = Split(id, begin);
    Insert(id);
    id = upper;
  }
  if (end != chunks_[id].end()) Insert(Split(id, end));
  return id;
}

ChunkId Arena::Coalesce(ChunkId id) {
  const ChunkState state = chunks_[id].state;
  const auto leave = [&](ChunkId neighbour) {
    if (state == ChunkState::kFree) {
      Remove(neighbour);
    } else {
      unmapped_.Erase(chunks_[neighbour].address);
    }
  };
  const ChunkId next = chunks_[id].next;
  if (next != kNoChunk && chunks_[next].state == state) {
    leave(next);
    JoinNext(id);
  }
  const ChunkId previous = chunks_[id].previous;
  if (previous != kNoChunk && chunks_[previous].state == state) {
    leave(previous);
    JoinNext(previous);
    return previous;
  }
  return id;
}

void Arena::JoinNext(ChunkId lower) {
  Chunk& c = chunks_[lower];
  const ChunkId upper = c.next;
  map_.Erase(chunks_, upper);
  c.bytes += chunks_[upper].bytes;
  c.next = chunks_[upper].next;
  if (c.next != kNoChunk) chunks_[c.next].previous = lower;
  chunks_.GiveBack(upper);
}

void Arena::Insert(ChunkId id) {
  bins_.Insert(chunks_, id);
  ++stats_.free_chunks;
  stats_.free_bytes += chunks_[id].bytes;
}

void Arena::Remove(ChunkId id) {
  bins_.Erase(chunks_, id);
  CountRemoved(id);
}

void Arena::CountRemoved(ChunkId id) {
  --stats_.free_chunks;
  stats_.free_bytes -= chunks_[id].bytes;
}

// ---------------------------------------------------------------------------
// Growth.

size_t Arena::RoomBytes() const {
  const size_t left =
      limit_bytes_ - std::min(limit_bytes_, stats_.mapped_bytes);
  return std::min(left, source_->AvailableBytes());
}

bool Arena::Grow(size_t bytes, size_t alignment) noexcept {
  const size_t rounded = RoundedBytes(bytes);
  if (rounded > limit_bytes_ || !ReserveRecords(1)) return false;
  if (!source_->has_virtual_memory()) {
    return GrowByRegion(rounded);
  }
  // The lowest place where the request fits once memory is behind it, what is
  // free on either side counted. Other places are tried while the source
  // refuses; more addresses would not help then.
  bool refused = false;
  const auto grow_where_it_fits = [&] {
    for (const auto& [address, id] : unmapped_.entries()) {
      const Chunk& c = chunks_[id];
      const auto free_bytes = [&](ChunkId neighbour) -> size_t {
        if (neighbour == kNoChunk) return 0;
        const Chunk& n = chunks_[neighbour];
        return n.state == ChunkState::kFree ? n.bytes : 0;
      };
      const uintptr_t start =
          RoundUp(c.address - free_bytes(c.previous), alignment);
      const uintptr_t end = start + rounded;
      if (end > c.end() + free_bytes(c.next)) continue;
      const uintptr_t needed_end = std::min(end, c.end());
      // Where the request would fit without, no growth was needed.
      const size_t needed =
          needed_end > c.address
              ? RoundUp(needed_end - c.address, source_->granularity())
              : source_->granularity();
      if (GrowInto(id, needed)) return true;
      refused = true;
    }
    return false;
  };
  if (grow_where_it_fits()) return true;
  if (refused) return false;
  // Address space for the whole limit at once, and more only if that has no
  // hole of the size. Half as much is tried while the source refuses.
  const size_t needed = RoundUp(rounded, source_->granularity());
  if (needed > RoomBytes()) return false;
  size_t reserve =
      std::max(needed, std::min(RoundUp(limit_bytes_, source_->granularity()),
                                source_->LargestReservation()));
  for (;;) {
    if (const uintptr_t base = source_->Reserve(reserve); base != 0) {
      const ChunkId id = AddRegion(base, reserve, ChunkState::kUnmapped);
      unmapped_.Insert(base, id);
      return grow_where_it_fits();
    }
    const std::optional<size_t> next =
        NextAttempt(needed, reserve, source_->granularity());
    if (!next) return false;
    reserve = *next;
  }
}

bool Arena::GrowInto(ChunkId unmapped, size_t needed_bytes) {
  const size_t granularity = source_->granularity();
  const size_t room = RoundDown(RoomBytes(), granularity);
  if (needed_bytes > room) return false;
  const uintptr_t address = chunks_[unmapped].address;
  const size_t policy_step = NextStep(growth_, last_step_bytes_);
  size_t step = std::max(needed_bytes, RoundUp(policy_step, granularity));
  step = std::min({step, chunks_[unmapped].bytes, room});
  while (!source_->Map(address, step)) {
    const std::optional<size_t> next =
        NextAttempt(needed_bytes, step, granularity);
    if (!next) return false;
    step = *next;
  }
  last_step_bytes_ = policy_step;
  unmapped_.Erase(address);
  if (step < chunks_[unmapped].bytes) {
    const ChunkId rest = Split(unmapped, address + step);
    unmapped_.Insert(address + step, rest);
  }
  CountMapped(unmapped, step);
  return true;
}

bool Arena::GrowByRegion(size_t bytes) {
  const size_t granularity = source_->granularity();
  const size_t needed = RoundUp(bytes, granularity);
  const size_t room = RoundDown(RoomBytes(), granularity);
  if (needed > room) return false;
  const size_t policy_step = NextStep(growth_, last_step_bytes_);
  size_t step =
      std::min(std::max(needed, RoundUp(policy_step, granularity)), room);
  for (;;) {
    if (const uintptr_t base = source_->Reserve(step); base != 0) {
      last_step_bytes_ = policy_step;
      CountMapped(AddRegion(base, step, ChunkState::kFree), step);
      return true;
    }
    const std::optional<size_t> next = NextAttempt(needed, step, granularity);
    if (!next) return false;
    step = *next;
  }
}

ChunkId Arena::AddRegion(uintptr_t base, size_t bytes, ChunkState state) {
  const ChunkId id = chunks_.Take();
  Chunk& c = chunks_[id];
  c.address = base;
  c.bytes = bytes;
  c.state = state;
  c.previous = c.next = kNoChunk;
  map_.Insert(chunks_, id);
  regions_.Insert(base, id);
  ++stats_.regions;
  stats_.reserved_bytes += bytes;
  return id;
}

void Arena::CountMapped(ChunkId id, size_t bytes) {
  steps_.Insert(chunks_[id].address, bytes);
  ++stats_.steps;
  ++stats_.growths;
  stats_.mapped_bytes += bytes;
  stats_.peak_mapped_bytes =
      std::max(stats_.peak_mapped_bytes, stats_.mapped_bytes);
  chunks_[id].state = ChunkState::kFree;
  Insert(Coalesce(id));
}

// ---------------------------------------------------------------------------
// Statistics.

ArenaStats& ArenaStats::operator+=(const ArenaStats& other) {
  bytes_in_use += other.bytes_in_use;
  requested_bytes += other.requested_bytes;
  free_bytes += other.free_bytes;
  mapped_bytes += other.mapped_bytes;
  reserved_bytes += other.reserved_bytes;
  largest_free_bytes = std::max(largest_free_bytes, other.largest_free_bytes);
  chunks_in_use += other.chunks_in_use;
  free_chunks += other.free_chunks;
  regions += other.regions;
  steps += other.steps;
  peak_bytes_in_use += other.peak_bytes_in_use;
  peak_mapped_bytes += other.peak_mapped_bytes;
  growths += other.growths;
  trims += other.trims;
  return *this;
}

ArenaStats Arena::stats() const noexcept {
  ArenaStats stats = stats_;
  const ChunkId largest = bins_.Largest(chunks_);
  stats.largest_free_bytes = largest == kNoChunk ? 0 : chunks_[largest].bytes;
  return stats;
}

void Arena::ResetPeaks() noexcept {
  stats_.peak_bytes_in_use = stats_.bytes_in_use;
  stats_.peak_mapped_bytes = stats_.mapped_bytes;
}

void Arena::ForEachChunk(const std::function<void(const Chunk&)>& visit) const {
  for (const auto& [base, first] : regions_.entries()) {
    for (ChunkId id = first; id != kNoChunk; id = chunks_[id].next) {
      visit(chunks_[id]);
    }
  }
}

}  // namespace jax_bfc
