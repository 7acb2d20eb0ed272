// An Arena hands out chunks of memory obtained in regions from a MemorySource.
//
// Allocation takes the smallest free chunk that fits (lowest address on a tie)
// and splits off the remainder. Freeing joins free neighbours. Memory comes in
// steps: mapped into the lowest place where the request then fits, and given
// back by Trim when a step is wholly free.
//
// Invariants, proved by CheckInvariants():
//   I1 tiled      a region's chunks cover it in order, no gap, no overlap
//   I2 coalesced  no two neighbouring chunks are both free, or both unmapped
//   I3 binned     a chunk is in exactly one bin iff it is free, in its own
//   I4 aligned    chunks start and end at multiples of kQuantum
//   I5 findable   every chunk start maps to its chunk, nothing else maps
//   I6 counted    every counter equals the sum that it names
//   I7 bounded    mapped bytes never exceed the limit, no peak is under its
//                 current
//
// Out of host memory: a function either has room for all its records before it
// changes anything, or changes nothing and answers as if the source refused.
// Giving back (Free, Trim, HoldFreeSteps, TrimHeld) needs no memory at all: the
// records that it may need are kept from the time the memory was mapped. No
// exception leaves an arena but from its constructor.
//
// Cost: allocate, free and find O(log n) in the number of chunks, growing O(log
// n) a place tried; host memory by the chunk, never by the byte of arena.
//
// After Knuth's best fit with boundary tags (The Art of Computer Programming
// 1, 2.5), Lea's dlmalloc and TensorFlow's BFC allocator, of which this keeps
// the words.
//
// Not thread-safe; see pool/. Never touches the memory that it manages.
#ifndef JAX_BFC_CORE_ARENA_H_
#define JAX_BFC_CORE_ARENA_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>

#include "core/address_map.h"
#include "core/bins.h"
#include "core/chunk.h"
#include "core/growth.h"
#include "core/memory_source.h"
#include "core/reserved_map.h"
#include "core/size_class.h"

namespace jax_bfc {

struct ArenaStats {
  size_t bytes_in_use = 0;     // chunk bytes handed out
  size_t requested_bytes = 0;  // of those, what was asked for
  size_t free_bytes = 0;       // in bins
  size_t mapped_bytes = 0;     // in use and free
  size_t reserved_bytes = 0;   // addresses, mapped or not
  size_t largest_free_bytes = 0;
  size_t chunks_in_use = 0;
  size_t free_chunks = 0;
  size_t regions = 0;
  size_t steps = 0;
  size_t peak_bytes_in_use = 0;
  size_t peak_mapped_bytes = 0;
  uint64_t growths = 0;  // steps mapped ever
  uint64_t trims = 0;    // steps given back ever

  bool operator==(const ArenaStats&) const = default;
  // Of several arenas together; the peaks are then no more than a bound.
  ArenaStats& operator+=(const ArenaStats& other);
};

class Arena {
 public:
  // REQUIRES: `source` outlives the arena.
  Arena(MemorySource* source, size_t limit_bytes, GrowthPolicy growth = {});
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  // Unmaps and releases everything, chunks in use too.
  ~Arena();

  // A chunk of at least `bytes` at a multiple of `alignment`, or kNoChunk where
  // none fits: Allocate after growing, TryAllocate without.
  // REQUIRES: bytes <= kMaxRequest, IsValidAlignment(alignment).
  ChunkId Allocate(size_t bytes, size_t alignment = kQuantum) noexcept;
  ChunkId TryAllocate(size_t bytes, size_t alignment = kQuantum) noexcept;

  // Maps a step after which the request fits, and more if the policy says so;
  // false when the source, the limit or the host's memory does not allow it.
  bool Grow(size_t bytes, size_t alignment = kQuantum) noexcept;

  // REQUIRES: the chunk is in use.
  void Free(ChunkId id) noexcept;

  // The chunk, in any state, that starts at `address`; kNoChunk if none does.
  ChunkId Find(uintptr_t address) const noexcept {
    return map_.Find(chunks_, address);
  }
  const Chunk& chunk(ChunkId id) const noexcept { return chunks_[id]; }

  // Gives back every step that is wholly free; the bytes given back.
  // O(free chunks of at least a step + steps given back).
  size_t Trim() noexcept;
  // What Trim would give back.
  size_t TrimmableBytes() const noexcept;

  // Trim in two parts, for memory that work may still touch after it was freed.
  // HoldFreeSteps takes every step that is wholly free out of circulation, as
  // chunks in use: it returns the first, and NextHeld the others, to be read
  // before the chunk is given back; kNoChunk after the last. Once nothing
  // submitted before touches them, TrimHeld gives them back; where that cannot
  // be found out, Free makes them free again.
  ChunkId HoldFreeSteps() noexcept;
  ChunkId NextHeld(ChunkId held) const noexcept { return chunks_[held].left; }
  size_t TrimHeld(ChunkId held) noexcept;

  // Later growth follows these. What is mapped stays mapped.
  // REQUIRES: limit_bytes >= mapped_bytes.
  void set_limit_bytes(size_t limit_bytes) noexcept {
    limit_bytes_ = limit_bytes;
  }
  void set_growth(const GrowthPolicy& growth) noexcept { growth_ = growth; }
  size_t limit_bytes() const noexcept { return limit_bytes_; }

  // O(log n). The peak of bytes in use counts since the last reset.
  ArenaStats stats() const noexcept;
  void ResetPeaks() noexcept;

  // Every chunk of every region, in address order.
  void ForEachChunk(const std::function<void(const Chunk&)>& visit) const;

  // Nothing when every invariant holds, else which one broke and where.
  // O(n log n): for tests.
  std::optional<std::string> CheckInvariants() const;

 private:
  // Where a request would go: `chunk`, from `address` on.
  struct Place {
    ChunkId chunk;
    uintptr_t address;
  };
  friend struct ArenaTestPeer;

  // Room for the records of what comes next: of `more_steps` steps mapped, of
  // one chunk cut out of another then, and of giving everything back at last.
  // False, and nothing changed, when the host has no memory for them.
  bool ReserveRecords(size_t more_steps) noexcept;

  // REQUIRES: alignment > kQuantum.
  Place FindPlace(size_t bytes, size_t alignment) const;
  // Hands out `id`, which is in no bin; what it has beyond `bytes` stays free.
  ChunkId HandOut(ChunkId id, size_t bytes, size_t requested_bytes);

  // Cuts `id` in two at `address`; the new chunk, in the same state and in no
  // bin, is the upper part.
  ChunkId Split(ChunkId id, uintptr_t address);
  // Joins `id`, which is in no bin, with the neighbours in the same state.
  ChunkId Coalesce(ChunkId id);
  // Joins `lower` and the chunk above it, which goes away.
  void JoinNext(ChunkId lower);
  void Insert(ChunkId id);  // into its bin
  void Remove(ChunkId id);  // from its bin
  void CountRemoved(ChunkId id);

  // Grow, one place at a time: `needed` bytes at the start of `unmapped`.
  bool GrowInto(ChunkId unmapped, size_t needed_bytes);
  bool GrowByRegion(size_t bytes);
  ChunkId AddRegion(uintptr_t base, size_t bytes, ChunkState state);
  // Counts what was mapped at the start of `id` and makes it a free chunk.
  void CountMapped(ChunkId id, size_t bytes);
  size_t RoomBytes() const;

  // The steps that lie wholly in [begin, end): [first, last) in steps_.
  using Steps = ReservedMap<size_t>;
  std::pair<Steps::const_iterator, Steps::const_iterator> StepsIn(
      uintptr_t begin, uintptr_t end) const;
  // Calls visit(id) with every free chunk of at least a step, the smallest
  // first. It may cut pieces out of that chunk.
  template <typename Visit>
  void ForEachLargeFreeChunk(Visit visit) const;
  // Gives back the steps of free chunk `id` that lie in [begin, end).
  size_t TrimRange(ChunkId id, uintptr_t begin, uintptr_t end);
  // Cuts [begin, end) out of free chunk `id`, which leaves its bin; what is on
  // either side stays free.
  ChunkId CutOut(ChunkId id, uintptr_t begin, uintptr_t end);
  ChunkId FreeAndJoin(ChunkId id);  // the free chunk that it is part of now

  MemorySource* const source_;
  size_t limit_bytes_;
  GrowthPolicy growth_;
  size_t last_step_bytes_ = 0;

  ChunkTable chunks_;
  BinSet bins_;
  AddressMap map_;
  ReservedMap<ChunkId> unmapped_;  // by address
  ReservedMap<ChunkId> regions_;   // base to first chunk
  Steps steps_;                    // address to bytes, as mapped
  size_t most_chunks_ = 0;  // with no more, a request needs no room reserved
  ArenaStats stats_;
};

}  // namespace jax_bfc

#endif  // JAX_BFC_CORE_ARENA_H_
