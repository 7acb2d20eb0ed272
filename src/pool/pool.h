// A Pool is all the scratch of one device: thread-safe, never destroyed.
//
// Each thread has a slot with a front cache: chunks that were freed, found
// again by the next request of the same size. What the cache cannot serve comes
// from the arena, under one mutex. A slot owns what it handed out until that
// goes back to the arena, whoever frees it, so its counters are exact.
//
// When a request does not fit: flush the caches, grow, trim every pool of the
// same budget and grow, fail with a report. The pool goes on.
//
// Locks: a slot's, then the arena's; one slot at a time, but for those who take
// all of them in the order of their index, after the mutex for new slots. No
// lock is held in a callback.
#ifndef JAX_BFC_POOL_POOL_H_
#define JAX_BFC_POOL_POOL_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "core/arena.h"
#include "pool/budget.h"
#include "pool/kernel_table.h"
#include "pool/oom_report.h"
#include "pool/slot.h"
#include "pool/thread_slot.h"
#include "source/host.h"

namespace jax_bfc {

struct PoolConfig {
  size_t limit_bytes = size_t{1} << 30;
  GrowthPolicy growth;
  bool preallocate = false;
  HugePages huge_pages = HugePages::kAuto;

  HostSource::Options host_options() const { return {huge_pages, preallocate}; }
};

struct Allocation {
  void* ptr;
  size_t bytes;  // of the chunk
  uint64_t id;   // never 0
};

struct PoolStats {
  ArenaStats arena;  // where what is in a front cache counts as in use
  size_t limit_bytes = 0;
  size_t bytes_in_use = 0;        // chunk bytes handed out
  size_t peak_bytes_in_use = 0;   // see gauge.h
  size_t requested_bytes = 0;     // of those, what was asked for
  size_t cached_bytes = 0;        // in front caches
  size_t largest_free_bytes = 0;  // in the arena or in a cache
  uint64_t allocations = 0;
  uint64_t cache_hits = 0;
  uint64_t failures = 0;
  uint64_t total_bytes = 0;
  uint64_t largest_bytes = 0;
  uint64_t live = 0;
};

struct KernelStats {
  std::string name;
  uint64_t calls = 0;
  uint64_t allocations = 0;
  size_t bytes_in_use = 0;
  size_t peak_bytes_in_use = 0;
  uint64_t total_bytes = 0;
  uint64_t largest_bytes = 0;
  uint64_t failures = 0;
  int64_t call_sites = 0;
};

class Pool {
 public:
  // `index` names the pool in allocation ids, `device` in messages. `reclaim`
  // trims every pool of the same budget and is called without a lock.
  Pool(uint32_t index, std::string device, const PoolConfig& config,
       Budget* budget, std::function<void()> reclaim);
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // Nothing, and the report, where the request does not fit. `new_call` counts
  // a call of the kernel.
  // REQUIRES: bytes <= kMaxRequest, IsValidAlignment(alignment).
  std::optional<Allocation> Allocate(KernelId kernel, size_t bytes,
                                     size_t alignment,
                                     std::unique_ptr<OomReport>* report,
                                     bool new_call = true);

  // False, and nothing changes, where this is not in use.
  bool Free(void* ptr, uint64_t id);

  // Gives memory back to the system; how many bytes.
  size_t Trim();

  PoolStats Stats();
  std::vector<KernelStats> Kernels();
  void ResetPeaks();
  std::string LastOomReport();
  const std::string& device() const { return device_; }

  // For those who change several pools at once (registry.h): locks everything.
  class Everything;

  static constexpr uint32_t kGenerationBits = 24;
  static constexpr uint32_t kIndexBits = 24;
  // The pool of an allocation id.
  static uint32_t PoolOf(uint64_t id) {
    return static_cast<uint32_t>(id >> 56);
  }

 private:
  Slot* SlotFor(uint32_t index) {
    Slot* slot = slots_[index].load(std::memory_order_acquire);
    return slot != nullptr ? slot : NewSlot(index);
  }
  Slot* NewSlot(uint32_t index);
  // The slots that threads use, each locked, in the order of their index, so
  // that what is read or changed in all of them is of one moment. A thread's
  // first use of the pool waits for `slots_mutex`, so that none is missed.
  struct LockedSlots {
    std::unique_lock<std::mutex> none_new;
    std::vector<Slot*> slots;
    std::vector<std::unique_lock<SpinLock>> locks;
  };
  LockedSlots LockSlots();

  struct Request {
    KernelId kernel;
    size_t bytes;
    size_t alignment;
    bool new_call;
  };
  [[gnu::noinline]] std::optional<Allocation> AllocateFromArena(
      std::unique_lock<SpinLock> lock, Slot& slot, uint32_t slot_index,
      const Request& request, std::unique_ptr<OomReport>* report);
  // Under the slot's lock.
  Allocation HandOut(Slot& slot, uint32_t slot_index, Entry& entry,
                     const Request& request);
  // Under the slot's lock: evicts until the cache has room for the entry; false
  // where it never has, and the chunk went to the arena.
  [[gnu::noinline]] bool MakeRoom(Slot& slot, Entry& entry, size_t max_bytes);
  ChunkId AllocateByGrowing(size_t bytes, size_t alignment);
  OomReport Report(KernelId kernel, size_t bytes, size_t alignment);

  Arena& arena();  // under arena_mutex_: made when first used
  void Flush();    // every front cache into the arena
  void SetLimits(const PoolConfig& config);

  const uint32_t index_;
  const std::string device_;
  const std::function<void()> reclaim_;
  std::atomic<int64_t> quantum_;         // of the gauges, in bytes
  std::atomic<size_t> cache_max_bytes_;  // of one front cache
  std::mutex slots_mutex_;               // taken first of all
  std::array<std::atomic<Slot*>, kSlots> slots_{};

  SharedGauge in_use_;
  std::unique_ptr<SharedGauge[]> kernels_in_use_;

  std::mutex arena_mutex_;
  PoolConfig config_;
  HostSource host_;
  BudgetedSource source_;
  std::unique_ptr<Arena> arena_;
  std::string last_oom_report_;
};

// Holds every lock of a pool, its caches flushed.
class Pool::Everything {
 public:
  explicit Everything(Pool* pool);
  Everything(const Everything&) = delete;
  Everything& operator=(const Everything&) = delete;

  size_t Live() const;  // allocations handed out
  size_t MappedBytes() const;
  size_t MappedAfterTrim() const;
  void Trim();
  void Apply(const PoolConfig& config);  // REQUIRES: it is within the limit
  void Reset();                          // as new; REQUIRES: Live() == 0

 private:
  Pool* const pool_;
  const LockedSlots locked_;
  const std::lock_guard<std::mutex> arena_lock_;
};

}  // namespace jax_bfc

#endif  // JAX_BFC_POOL_POOL_H_
