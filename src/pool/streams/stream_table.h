// Which CUDA stream has which lane of a pool.
//
// Lanes are numbered from 1 to kStreamLanes. A stream that asks for the first
// time gets a lane that no stream has had. Where all have had one, a lane whose
// stream has nothing in use changes hands: its owner, the pool, vacates it.
//
// Find is lock-free and may be overtaken: it may answer with a lane that is
// changing hands. So a reference carries the lane's generation, and whoever
// uses it asks IsCurrent under the lock under which the lane is vacated. As
// long as that lock is held, no other stream has the lane.
//
// Why this is right: a lane that is vacated first loses its stream's id and
// then gets its next generation, in this order. Find reads the generation
// first and then the id. If it reads the new generation, it cannot read the old
// stream's id any more; if it reads the old one, the reference is stale. (The
// other way round, the old stream would be given the new stream's lane.)
//
// Thread-safe.
#ifndef JAX_BFC_POOL_STREAMS_STREAM_TABLE_H_
#define JAX_BFC_POOL_STREAMS_STREAM_TABLE_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>

#include "base/locks.h"
#include "pool/streams/stream_ref.h"

namespace jax_bfc {

inline constexpr uint32_t kStreamLanes = 47;  // of one pool, at once
static_assert(kStreamLanes < 1u << StreamRef::kLaneBits);

class StreamTable {
 public:
  // The lane of the stream with this id (cuStreamGetId), if it has one.
  std::optional<StreamRef> Find(uint64_t stream_id) const {
    for (uint32_t i = 0; i < kStreamLanes; ++i) {
      const uint32_t lane = Probe(stream_id, i);
      const Entry& entry = entries_[lane];
      const uint32_t generation =
          entry.generation.load(std::memory_order_acquire);
      const uint64_t owner = entry.owner.load(std::memory_order_acquire);
      if (owner == stream_id + 1) return StreamRef{lane, generation};
      if (owner == kNeverUsed) return std::nullopt;
    }
    return std::nullopt;
  }

  // The lane of the stream, which gets one if it has none; nothing where every
  // lane has a stream that uses it.
  //
  // `vacate(lane, release)` is called, under this table's lock, for lanes in
  // turn until it returns true. It calls release() only if nothing in the lane
  // is in use, and under the lock under which others ask IsCurrent. It returns
  // true if it did so and what the old stream has submitted is done.
  template <typename Vacate>
  std::optional<StreamRef> Assign(uint64_t stream_id, Vacate&& vacate) {
    const Guard lock(mutex_);
    for (uint32_t i = 0; i < kStreamLanes; ++i) {
      const uint32_t lane = Probe(stream_id, i);
      const uint64_t owner =
          entries_[lane].owner.load(std::memory_order_relaxed);
      if (owner == kNeverUsed || owner == stream_id + 1) {
        return Give(lane, stream_id);
      }
    }
    for (uint32_t i = 0; i < kStreamLanes; ++i) {
      const uint32_t lane = next_vacated_;
      next_vacated_ = 1 + lane % kStreamLanes;
      if (vacate(lane, [&] { Release(lane); })) return Give(lane, stream_id);
    }
    return std::nullopt;
  }

  // Whether the stream of the reference still has its lane.
  bool IsCurrent(StreamRef ref) const {
    return entries_[ref.lane].generation.load(std::memory_order_relaxed) ==
           ref.generation;
  }

  // The id of the stream that has the lane; nothing for lane 0, for a lane that
  // no stream has had, and for one that is changing hands.
  std::optional<uint64_t> StreamOf(uint32_t lane) const {
    const uint64_t owner = entries_[lane].owner.load(std::memory_order_acquire);
    if (owner == kNeverUsed || owner == kChangingHands) return std::nullopt;
    return owner - 1;
  }

 private:
  // An owner is a stream's id plus 1, or one of these.
  static constexpr uint64_t kNeverUsed = 0;
  static constexpr uint64_t kChangingHands = ~uint64_t{0};
  struct Entry {
    std::atomic<uint64_t> owner{kNeverUsed};
    std::atomic<uint32_t> generation{0};
  };

  // The lane to look at as number `i` for this stream.
  static uint32_t Probe(uint64_t stream_id, uint32_t i) {
    return static_cast<uint32_t>(1 + (stream_id + i) % kStreamLanes);
  }
  StreamRef Give(uint32_t lane, uint64_t stream_id) JAX_BFC_REQUIRES(mutex_) {
    Entry& entry = entries_[lane];
    entry.owner.store(stream_id + 1, std::memory_order_release);
    return {lane, entry.generation.load(std::memory_order_relaxed)};
  }
  // In this order, see above.
  void Release(uint32_t lane) {
    Entry& entry = entries_[lane];
    entry.owner.store(kChangingHands, std::memory_order_release);
    const uint32_t generation =
        entry.generation.load(std::memory_order_relaxed);
    entry.generation.store((generation + 1) & StreamRef::kGenerationMask,
                           std::memory_order_release);
  }

  std::array<Entry, 1 + kStreamLanes> entries_;  // of lane 0: never written
  Mutex mutex_{LockRank::kStreams};
  uint32_t next_vacated_ JAX_BFC_GUARDED_BY(mutex_) = 1;
};

}  // namespace jax_bfc

#endif  // JAX_BFC_POOL_STREAMS_STREAM_TABLE_H_
