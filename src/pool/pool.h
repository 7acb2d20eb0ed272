// A Pool is all the scratch of one device: thread-safe, never destroyed.
//
// On the host, all slots share one lane and each thread has a slot. On a CUDA
// device each stream has a slot and a lane, whoever calls. A slot has a front
// cache: chunks that were freed, found again by the next request of the same
// size. What the cache cannot serve comes from the lane's arena, under its
// mutex. A slot owns what it handed out until that goes back to the arena,
// whoever frees it, so its counters are exact.
//
// When a request does not fit: flush the caches, grow, trim every pool of the
// same budget and grow, tell the out-of-memory hook and try once more, fail with
// a report. The pool goes on.
//
// Locks: trimming's, a slot's, then its lane's; one slot at a time, but for
// those who take all of them in the order of their index, after the mutex for
// new slots. No lock is held in a callback. While anybody waits for the device
// no lock is held that an allocation in a known stream takes, but by a reset.
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
#include "pool/events.h"
#include "pool/kernel_table.h"
#include "pool/lane.h"
#include "pool/oom_report.h"
#include "pool/peaks.h"
#include "pool/slot.h"
#include "pool/snapshot.h"
#include "pool/thread_slot.h"
#include "source/host.h"  // HugePages

namespace jax_bfc {

// Where a CUDA pool's memory comes from. kAuto: virtual memory where the device
// has it.
enum class CudaMemoryKind { kAuto, kVirtual, kPlain };

struct PoolConfig {
  size_t limit_bytes = size_t{1} << 30;
  GrowthPolicy growth;
  bool preallocate = false;
  HugePages huge_pages = HugePages::kAuto;
  CudaMemoryKind cuda_memory = CudaMemoryKind::kAuto;
};

// Makes the source that a configuration asks for; those of one kind can stand
// in for one another.
using SourceMaker =
    std::function<std::unique_ptr<MemorySource>(const PoolConfig&)>;
std::unique_ptr<MemorySource> MakeHostSource(const PoolConfig& config);

struct Allocation {
  void* ptr;
  size_t bytes;  // of the chunk
  uint64_t id;   // never 0
};

struct PoolStats {
  ArenaStats arena;  // where what is in a front cache counts as in use
  size_t limit_bytes = 0;
  size_t bytes_in_use = 0;       // chunk bytes handed out
  size_t peak_bytes_in_use = 0;  // see gauge.h
  size_t requested_bytes = 0;    // of those, what was asked for
  size_t cached_bytes = 0;       // in front caches, or waiting for the device
  size_t pinned_bytes = 0;       // of those in use, by CUDA graphs
  size_t pinned_for_life_bytes = 0;
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
  size_t pinned_bytes = 0;
  uint64_t total_bytes = 0;
  uint64_t largest_bytes = 0;
  uint64_t failures = 0;
  int64_t call_sites = 0;
};

class Pool {
 public:
  // `index` names the pool in allocation ids, `device` in messages. `reclaim`
  // trims every pool of the same budget and is called without a lock. Where the
  // source runs ahead, each stream has a lane.
  Pool(uint32_t index, std::string device, const PoolConfig& config,
       Budget* budget, std::function<void()> reclaim,
       SourceMaker make_source = MakeHostSource);
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  static constexpr uint32_t kNoStream = 0;
  static constexpr uint32_t kStreams = 47;  // that have lanes at once
  struct Request {
    KernelId kernel;
    size_t bytes;                 // at most kMaxRequest
    size_t alignment;             // valid, see IsValidAlignment
    bool new_call = true;         // counts a call of the kernel
    uint32_t stream = kNoStream;  // from StreamOf; says nothing on the host
    // Whether the device may be waited for, and other lanes trimmed. Not while
    // the thread captures a stream.
    bool may_wait = true;
    // Whether the out-of-memory hook may be called, see oom_hook.h.
    bool may_call_back = true;
  };
  // False, and the report, where it does not fit.
  bool Allocate(const Request& request, Allocation* made,
                std::unique_ptr<OomReport>* report);

  // Names the stream with this id (cuStreamGetId) in Allocate. A stream that is
  // new gets a lane; where all are taken, that of a stream that has nothing in
  // use, or the one without order.
  uint32_t StreamOf(uint64_t stream_id);

  // False, and nothing changes, where this is not in use.
  bool Free(void* ptr, uint64_t id);

  // Marks and counts an allocation as held by a graph, or no longer, see pins.h.
  // REQUIRES: it is in use, and not marked so yet.
  void CountPinned(uint64_t id, bool pinned, bool for_life);
  // Counts a request that was answered out of what a graph holds.
  void CountAgain(const Request& request);

  // Gives memory back to the system, once the device is done with it; how many
  // bytes.
  size_t Trim();

  PoolStats Stats();
  std::vector<KernelStats> Kernels();
  // Of one moment: holds every lock of the pool for a time that is linear in
  // the number of chunks. Nothing moves: caches stay as they are.
  PoolSnapshot Snapshot();
  void ResetPeaks();
  std::string LastOomReport();

  // The exact peak from now on, see peaks.h.
  uint64_t OpenPeak();
  Peak ReadPeak(uint64_t block) { return peaks_.Read(block); }
  void ClosePeak(uint64_t block);

  // For those who start and stop the recorder, which is on: what happens from
  // now on is recorded, after what is in use.
  void StartRecording();
  void StopRecording();

  const std::string& device() const { return device_; }
  uint32_t index() const { return index_; }

  // For those who change several pools at once (registry.h): locks everything.
  class Everything;

  static constexpr uint32_t kGenerationBits = 24;
  static constexpr uint32_t kIndexBits = 24;
  // Pool, slot, entry, generation: 8 + 8 + 24 + 24 bits.
  uint64_t MakeId(uint32_t slot_index, const Entry& entry) const {
    return uint64_t{index_} << 56 | uint64_t{slot_index} << 48 |
           uint64_t{entry.index} << kGenerationBits | entry.generation;
  }
  // The pool of an allocation id, the index of its slot, and of its entry there.
  static uint32_t PoolOf(uint64_t id) {
    return static_cast<uint32_t>(id >> 56);
  }
  static uint32_t SlotOf(uint64_t id) {
    return static_cast<uint32_t>(id >> 48 & 0xFF);
  }
  static uint32_t EntryOf(uint64_t id) {
    constexpr uint64_t kMask = (uint64_t{1} << kIndexBits) - 1;
    return static_cast<uint32_t>(id >> kGenerationBits & kMask);
  }

 private:
  Slot* SlotFor(uint32_t index) {
    Slot* slot = slots_[index].load(std::memory_order_acquire);
    return slot != nullptr ? slot : NewSlot(index);
  }
  Slot* NewSlot(uint32_t index);
  uint32_t NewStream(uint64_t stream_id);
  // Gives `index`, whose stream has nothing in use, to another stream.
  bool Reassign(uint32_t index);
  // The slots that threads use, each locked, in the order of their index, so
  // that what is read or changed in all of them is of one moment. A thread's
  // first use of the pool waits for `slots_mutex`, so that none is missed.
  struct LockedSlots {
    std::unique_lock<std::mutex> none_new;
    std::vector<Slot*> slots;
    std::vector<std::unique_lock<SpinLock>> locks;
  };
  LockedSlots LockSlots();

  // Bits of Slot::watchers.
  enum Watcher : uint32_t { kPeaks = 1, kRecorder = 2 };
  // REQUIRES: the slots are locked.
  void SetWatcher(const LockedSlots& locked, Watcher watcher, bool on);
  // Under the slot's lock: the entry was handed out, or is about to be freed.
  [[gnu::noinline]] void NoteHandOut(Slot& slot, const Entry& entry,
                                     uint64_t id);
  [[gnu::noinline]] void NoteFree(Slot& slot, const Entry& entry, uint64_t id);
  void Record(Slot& slot, const Entry& entry, uint64_t id, EventKind kind);
  // Under the lane's mutex: records what was mapped or unmapped since the last
  // time.
  void RecordMapping(Lane& lane);
  // Of a kind without a slot.
  void RecordRare(EventKind kind, KernelId kernel, size_t requested_bytes,
                  size_t chunk_bytes, size_t lane = 0);

  // Whether the stream has lost its slot since it was named.
  bool IsStale(const Slot& slot, const Request& request) const {
    return by_stream_ && slot.stream_generation.load(std::memory_order_relaxed)
                                 << 8 !=
                             (request.stream & ~uint32_t{0xFF});
  }
  // The rest of Allocate, with the slot's lock held, which it releases.
  [[gnu::noinline]] bool AllocateFromArena(Slot& slot, uint32_t slot_index,
                                           const Request& request,
                                           Allocation* made,
                                           std::unique_ptr<OomReport>* report);
  // Under the slot's lock, which has the kernel's counters.
  void HandOut(Slot& slot, uint32_t slot_index, Entry& entry,
               const Request& request, Allocation* made);
  // Under the slot's lock: evicts until the cache has room for the entry; false
  // where it never has, and the chunk went to the arena.
  [[gnu::noinline]] bool MakeRoom(Slot& slot, Entry& entry, size_t max_bytes);
  ChunkId AllocateByGrowing(Lane& lane, size_t bytes, size_t alignment);
  OomReport Report(const Request& request);
  void KeepReport(const OomReport& report);

  Lane& LaneOfSlot(uint32_t index) { return lanes_[by_stream_ ? index : 0]; }
  Arena& ArenaOf(Lane& lane);  // under its mutex: made when first used
  // Every front cache of the lane, or of all, into its arena.
  void Flush(const Lane* lane = nullptr);
  // Waits for the device, then frees what was deferred.
  void FreeDeferred(Lane& lane);
  void SetLimits(const PoolConfig& config);

  const uint32_t index_;
  const std::string device_;
  const std::function<void()> reclaim_;
  const SourceMaker make_source_;
  std::atomic<int64_t> quantum_;         // of the gauges, in bytes
  std::atomic<size_t> cache_max_bytes_;  // of one front cache
  std::mutex slots_mutex_;               // taken first of all
  std::array<std::atomic<Slot*>, kSlots> slots_{};
  uint32_t watchers_ = 0;  // of every slot, under slots_mutex_
  Peaks peaks_;

  SharedGauge in_use_;
  std::unique_ptr<SharedGauge[]> kernels_in_use_;
  std::unique_ptr<std::atomic<int64_t>[]> kernels_pinned_;
  std::atomic<int64_t> pinned_{0};
  std::atomic<int64_t> pinned_for_life_{0};

  // Written with every lock held, read with any lane's.
  PoolConfig config_;
  std::unique_ptr<MemorySource> device_source_;
  BudgetedSource source_;
  const bool by_stream_;
  std::vector<Lane> lanes_;
  std::atomic<bool> preallocated_{false};  // by the first lane that was used

  // Which stream has which slot: its id and 1, 0 where there is none.
  std::array<std::atomic<uint64_t>, kSlots> stream_ids_{};
  std::mutex streams_mutex_;  // taken before all others, to change them
  uint32_t next_reassigned_ = 1;

  std::mutex trim_mutex_;  // one trim at a time: what it holds is soon back
  std::mutex report_mutex_;
  std::string last_oom_report_;
};

// Holds every lock of a pool, its caches flushed.
class Pool::Everything {
 public:
  explicit Everything(Pool* pool);
  Everything(const Everything&) = delete;
  Everything& operator=(const Everything&) = delete;

  uint64_t Live() const;  // allocations handed out
  size_t MappedBytes() const;
  size_t MappedAfterTrim() const;
  void Trim();  // REQUIRES: the source does not run ahead
  // REQUIRES: what is mapped is within the limit, and nothing is if the source
  // changes.
  void Apply(const PoolConfig& config);
  bool ChangesSource(const PoolConfig& config) const;
  // As new; false where the device cannot be waited for, or does not take its
  // memory back.
  // REQUIRES: Live() == 0.
  bool Reset();

 private:
  Pool* const pool_;
  const std::lock_guard<std::mutex> trim_lock_;
  const LockedSlots locked_;
  std::vector<std::unique_lock<std::mutex>> lane_locks_;
};

}  // namespace jax_bfc

#endif  // JAX_BFC_POOL_POOL_H_
