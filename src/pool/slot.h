// A Slot is what one thread of the host uses of a pool, or one CUDA stream: its
// front cache, what it handed out, and its counters. Everything under its lock;
// any thread may lock it to free, flush or read.
//
// Whoever hands out first makes room for the records (Prepare), which may
// throw; nothing else here does.
#ifndef JAX_BFC_POOL_SLOT_H_
#define JAX_BFC_POOL_SLOT_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <vector>

#include "base/locks.h"
#include "core/chunk.h"
#include "pool/allocation_id.h"
#include "pool/events.h"
#include "pool/gauge.h"
#include "pool/kernel_table.h"
#include "pool/lane.h"

namespace jax_bfc {

// The most chunks in one front cache, and how many leave when it is full.
inline constexpr uint32_t kCacheChunks = 16;
inline constexpr uint32_t kCacheEvicted = 8;

// A chunk that the slot has from the arena: handed out, or in its cache.
struct Entry {
  enum class State : uint32_t {
    kUnused,
    kCached,
    kDeferred,  // freed in a lane without order, see lane.h
    kLive,
  };
  uintptr_t address;
  size_t bytes;
  size_t requested_bytes;
  KernelId kernel;
  ChunkId chunk;
  uint32_t index;       // of this entry in its slot
  uint32_t generation;  // of the next or present use, from 1
  State state;
  bool pinned;         // live, and held by a CUDA graph, see pins.h
  Entry* next_unused;  // or deferred
};

// Chunks on their way from a front cache to the arena.
struct Evicted {
  std::array<ChunkId, kCacheChunks + 1> chunks;
  uint32_t count = 0;
};

struct KernelCounters {
  uint64_t calls = 0;
  uint64_t allocations = 0;
  uint64_t total_bytes = 0;
  uint64_t largest_bytes = 0;  // asked for at once
  uint64_t failures = 0;
  LocalGauge in_use;
};

struct alignas(64) Slot {
  // A front cache of at most `cache_chunks_most` chunks, of the lane's.
  Slot(Lane* slot_lane, uint32_t cache_chunks_most)
      : cache_chunks(cache_chunks_most), lane(slot_lane) {}

  ShortLock lock{LockRank::kSlot};
  // Who wants to hear of what is handed out and freed here, see Pool::Watcher;
  // nobody, nearly always. Written under the lock.
  uint32_t watchers = 0;
  uint32_t cached = 0;  // the newest is at cached - 1
  const uint32_t cache_chunks;
  size_t cached_bytes = 0;
  std::array<size_t, kCacheChunks> cache_bytes;
  std::array<Entry*, kCacheChunks> cache_entries;

  Lane* const lane;
  BlockArray<Entry> entries;
  Entry* unused = nullptr;

  // Freed in a lane without order, so that work which was submitted before may
  // still touch them: from the first that was freed on, linked by next_unused.
  Entry* first_deferred = nullptr;
  Entry* last_deferred = nullptr;
  uint64_t deferred_ever = 0;
  size_t deferred_chunks = 0;
  size_t deferred_bytes = 0;

  LocalGauge in_use;
  uint64_t requested_bytes = 0;  // of what is handed out
  uint64_t cache_hits = 0;
  std::vector<KernelCounters> kernels;
  std::unique_ptr<EventBlock> events;  // see events.h

  // The most entries that a slot can have.
  static constexpr size_t kMostEntries = size_t{1} << AllocationId::kEntryBits;
  size_t most_entries = kMostEntries;  // less in a test

  // Makes room for one allocation of the kernel. Nothing has changed where it
  // throws.
  void Prepare(KernelId kernel) {
    Counters(kernel);
    if (unused != nullptr) return;
    if (entries.size() >= most_entries) {
      throw std::length_error(
          "jax_bfc: one thread or stream has too many allocations at once; "
          "the most is 16,777,216. Free some, or allocate larger ones.");
    }
    Entry& entry = entries[entries.Grow()];
    entry.index = static_cast<uint32_t>(entries.size() - 1);
    entry.generation = 1;
    Retire(entry);
  }

  KernelCounters& Counters(KernelId kernel) {
    if (kernel >= kernels.size()) [[unlikely]]
      kernels.resize(kernel + 1);
    return kernels[kernel];
  }

  // Takes the newest chunk of exactly `bytes` out of the cache; null if there
  // is none so aligned.
  Entry* TakeCached(size_t bytes, size_t alignment) {
    for (uint32_t i = cached; i-- > 0;) {
      if (cache_bytes[i] != bytes) continue;
      Entry* entry = cache_entries[i];
      if ((entry->address & (alignment - 1)) != 0) continue;
      --cached;
      cached_bytes -= bytes;
      for (; i < cached; ++i) {
        cache_bytes[i] = cache_bytes[i + 1];
        cache_entries[i] = cache_entries[i + 1];
      }
      return entry;
    }
    return nullptr;
  }

  // REQUIRES: cached < cache_chunks.
  void PutCached(Entry& entry) {
    entry.state = Entry::State::kCached;
    cache_bytes[cached] = entry.bytes;
    cache_entries[cached] = &entry;
    ++cached;
    cached_bytes += entry.bytes;
  }

  // Takes the oldest `count` chunks out of the cache, for whoever has the
  // array to free them in the lane's arena, without this lock.
  void Evict(uint32_t count, Evicted* evicted) {
    for (uint32_t i = 0; i < count; ++i) {
      cached_bytes -= cache_bytes[i];
      evicted->chunks[evicted->count++] = cache_entries[i]->chunk;
      Retire(*cache_entries[i]);
    }
    for (uint32_t i = count; i < cached; ++i) {
      cache_bytes[i - count] = cache_bytes[i];
      cache_entries[i - count] = cache_entries[i];
    }
    cached -= count;
  }

  void Defer(Entry& entry) {
    entry.state = Entry::State::kDeferred;
    entry.next_unused = nullptr;
    (first_deferred == nullptr ? first_deferred : last_deferred->next_unused) =
        &entry;
    last_deferred = &entry;
    ++deferred_ever;
    ++deferred_chunks;
    deferred_bytes += entry.bytes;
  }
  // Takes up to `count` of those, as Evict does.
  void EndDeferred(size_t count, Evicted* evicted) {
    for (; count > 0 && evicted->count < evicted->chunks.size(); --count) {
      Entry& entry = *first_deferred;
      first_deferred = entry.next_unused;
      evicted->chunks[evicted->count++] = entry.chunk;
      --deferred_chunks;
      deferred_bytes -= entry.bytes;
      Retire(entry);
    }
  }

  // REQUIRES: Prepare() since the last one, under the same lock.
  Entry& NewEntry() {
    Entry& entry = *unused;
    unused = entry.next_unused;
    return entry;
  }
  void Retire(Entry& entry) {
    entry.state = Entry::State::kUnused;
    entry.next_unused = unused;
    unused = &entry;
  }
};

}  // namespace jax_bfc

#endif  // JAX_BFC_POOL_SLOT_H_
