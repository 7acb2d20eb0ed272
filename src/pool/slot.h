// A Slot is what one thread of the host uses of a pool, or one CUDA stream: its
// front cache, what it handed out, and its counters. Everything under its lock;
// any thread may lock it to free, flush or read.
#ifndef JAX_BFC_POOL_SLOT_H_
#define JAX_BFC_POOL_SLOT_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/chunk.h"
#include "pool/events.h"
#include "pool/gauge.h"
#include "pool/kernel_table.h"
#include "pool/lane.h"
#include "pool/spin_lock.h"

namespace jax_bfc {

// The most chunks in one front cache, and how many leave when it is full.
inline constexpr uint32_t kCacheChunks = 16;
inline constexpr uint32_t kCacheEvicted = 8;

// A chunk that the slot has from the arena: handed out, or in its cache.
struct Entry {
  enum class State : uint32_t { kUnused, kCached, kLive };
  uintptr_t address;
  size_t bytes;
  size_t requested_bytes;
  KernelId kernel;
  ChunkId chunk;
  uint32_t index;       // of this entry in its slot
  uint32_t generation;  // of the next or present use, from 1
  State state;
  bool pinned;  // live, and held by a CUDA graph, see pins.h
  Entry* next_unused;
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

  SpinLock lock;
  // Who wants to hear of what is handed out and freed here, see Pool::Watcher;
  // nobody, nearly always. Written under the lock.
  uint32_t watchers = 0;
  uint32_t cached = 0;  // the newest is at cached - 1
  const uint32_t cache_chunks;
  // Of the stream that the slot serves: it changes when another one gets it.
  // Written under the lock.
  std::atomic<uint32_t> stream_generation{0};
  size_t cached_bytes = 0;
  std::array<size_t, kCacheChunks> cache_bytes;
  std::array<Entry*, kCacheChunks> cache_entries;

  Lane* const lane;
  BlockArray<Entry> entries;
  Entry* unused = nullptr;

  LocalGauge in_use;
  uint64_t requested_bytes = 0;  // of what is handed out
  uint64_t cache_hits = 0;
  std::vector<KernelCounters> kernels;
  std::unique_ptr<EventBlock> events;  // see events.h

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

  // Takes the oldest `count` chunks out of the cache, for `give_back(chunk)`.
  template <typename GiveBack>
  void Evict(uint32_t count, GiveBack&& give_back) {
    for (uint32_t i = 0; i < count; ++i) {
      cached_bytes -= cache_bytes[i];
      give_back(cache_entries[i]->chunk);
      Retire(*cache_entries[i]);
    }
    for (uint32_t i = count; i < cached; ++i) {
      cache_bytes[i - count] = cache_bytes[i];
      cache_entries[i - count] = cache_entries[i];
    }
    cached -= count;
  }

  Entry& NewEntry() {
    if (unused == nullptr) {
      const size_t index = entries.Grow();
      Entry& entry = entries[index];
      entry.index = static_cast<uint32_t>(index);
      entry.generation = 1;
      return entry;
    }
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
