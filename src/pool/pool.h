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
// Locks: base/locks.h has their order. A lane's mutex is held while its arena
// grows, which takes system calls, so nobody waits for one with a slot's lock
// held: Allocate and Free take chunks out of a slot first, or only try for the
// lane. No lock is held in a callback. While anybody waits for the device no
// lock is held that an allocation in a known stream takes, but by a reset.
//
// Where the host has no memory for records, std::bad_alloc leaves Allocate, and
// nothing has changed. Free needs none.
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

#include "base/locks.h"
#include "core/arena.h"
#include "pool/allocation_id.h"
#include "pool/budget.h"
#include "pool/events.h"
#include "pool/kernel_table.h"
#include "pool/lane.h"
#include "pool/oom_report.h"
#include "pool/peaks.h"
#include "pool/slot.h"
#include "pool/snapshot.h"
#include "pool/streams/stream_table.h"
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

// Makes the source that a configuration asks for. Of each kind a pool keeps the
// first; the others only tell it their options.
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
  struct Request {
    KernelId kernel;
    size_t bytes;          // at most kMaxRequest
    size_t alignment;      // valid, see IsValidAlignment
    bool new_call = true;  // counts a call of the kernel
    // A packed StreamRef from StreamOf; says nothing on the host.
    uint32_t stream = kNoStream;
    // Whether the device may be waited for, and other lanes trimmed. Not while
    // the thread captures a stream.
    bool may_wait = true;
    // Whether the out-of-memory hook may be called, see oom_hook.h.
    bool may_call_back = true;
    // Whether the pool may map more than its limit for it.
    bool may_exceed_limit = false;
  };
  // False, and the report, where it does not fit.
  // Throws std::bad_alloc, or std::length_error where one slot has 2^24
  // allocations: nothing has changed then.
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
  // Says so, with no lock held, if more is mapped than the limit allows, each
  // time that it is much more than before.
  void WarnIfBeyondLimit();
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

  uint64_t MakeId(uint32_t slot_index, const Entry& entry) const {
    return AllocationId{index_, slot_index, entry.index, entry.generation}
        .Pack();
  }
  // The pool of an allocation id.
  static uint32_t PoolOf(uint64_t id) { return AllocationId::Unpack(id).pool; }

 private:
  Slot* SlotFor(uint32_t index) {
    Slot* slot = slots_[index].load(std::memory_order_acquire);
    return slot != nullptr ? slot : NewSlot(index);
  }
  Slot* NewSlot(uint32_t index);
  // Takes the lane from its stream if that has nothing in use, by `release`,
  // and waits for what it has submitted; see StreamTable::Assign.
  template <typename Release>
  bool Vacate(uint32_t lane, Release&& release);

  // Every lane and every slot that is in use, locked, so that what is read or
  // changed in them is of one moment. A thread's first use of the pool waits,
  // so that none is missed.
  class Locked {
   public:
    explicit Locked(Pool* pool);
    Locked(const Locked&) = delete;
    Locked& operator=(const Locked&) = delete;
    // In three parts, for those who lock several pools.
    Locked(Pool* pool, std::defer_lock_t);
    void LockNewSlots();
    void LockLanes();
    void LockSlots();

    const std::vector<Slot*>& slots() const { return slots_; }

   private:
    Pool* const pool_;
    std::unique_lock<Mutex> none_new_;
    std::vector<std::unique_lock<Mutex>> lanes_;
    std::vector<Slot*> slots_;
    std::vector<std::unique_lock<ShortLock>> locks_;
  };

  // Bits of Slot::watchers.
  enum Watcher : uint32_t { kPeaks = 1, kRecorder = 2 };
  // REQUIRES: the slots are locked.
  void SetWatcher(const Locked& locked, Watcher watcher, bool on);
  // Under the slot's lock: the entry was handed out, or is about to be freed.
  [[gnu::noinline]] void NoteHandOut(Slot& slot, const Entry& entry,
                                     uint64_t id);
  [[gnu::noinline]] void NoteFree(Slot& slot, const Entry& entry, uint64_t id);
  void Record(Slot& slot, const Entry& entry, uint64_t id, EventKind kind);
  // Under the lane's mutex: records what was mapped or unmapped since the last
  // time.
  void RecordMapping(Lane& lane);
  // Of a kind without a slot.
  void RecordRare(EventKind kind, uint32_t kernel, size_t requested_bytes,
                  size_t chunk_bytes, size_t lane = 0);

  // Whether the stream has lost its lane since it was named. Under the slot's
  // lock it stays so.
  bool IsStale(const Request& request) const {
    return by_stream_ && !streams_.IsCurrent(StreamRef::Unpack(request.stream));
  }
  // What an arena gave, not yet in a slot.
  struct Piece {
    ChunkId chunk = kNoChunk;
    uintptr_t address = 0;
    size_t bytes = 0;
  };
  // The rest of Allocate, with the slot's lock held, which it releases.
  [[gnu::noinline]] bool AllocateFromArena(Slot& slot, uint32_t slot_index,
                                           const Request& request,
                                           Allocation* made,
                                           std::unique_ptr<OomReport>* report);
  // With no lock held, the whole way: flush, grow, trim, grow.
  Piece TakePiece(Slot& slot, const Request& request);
  static Piece PieceOf(const Lane& lane, ChunkId chunk);
  Piece TakeByGrowing(Lane& lane, const Request& request);
  // REQUIRES: no slot's lock is held.
  void GiveBack(Lane& lane, const Evicted& evicted);
  // Under the slot's lock: the piece is handed out.
  void Enter(Slot& slot, uint32_t slot_index, const Piece& piece,
             const Request& request, Allocation* made);
  // Under the slot's lock, which has the kernel's counters.
  void HandOut(Slot& slot, uint32_t slot_index, Entry& entry,
               const Request& request, Allocation* made);
  // Under the slot's lock: where the entry goes, and which chunks must leave
  // the cache for it, the entry's own where it is too large.
  [[gnu::noinline]] void MakeRoom(Slot& slot, Entry& entry, size_t max_bytes,
                                  Evicted* evicted);
  OomReport Report(const Request& request);
  void KeepReport(const OomReport& report);

  Lane& LaneOfSlot(uint32_t index) { return lanes_[by_stream_ ? index : 0]; }
  Arena& ArenaOf(Lane& lane);  // under its mutex: made when first used
  // Says, with no lock held, that less was preallocated than was asked for.
  void WarnIfShort();
  // Every front cache of the lane, or of all, into its arena.
  void Flush(const Lane* lane = nullptr);
  // As the source's, and kept for the next report if it fails.
  bool WaitIdle();
  // Waits for the device, then frees what was deferred in the slot before.
  void FreeDeferred(Slot& slot);
  void SetLimits(const PoolConfig& config);

  const uint32_t index_;
  const std::string device_;
  const std::function<void()> reclaim_;
  const SourceMaker make_source_;
  std::atomic<int64_t> quantum_;         // of the gauges, in bytes
  std::atomic<size_t> cache_max_bytes_;  // of one front cache
  Mutex slots_mutex_{LockRank::kNewSlots};
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
  // One of each kind that was ever configured: another thread may be in one
  // that is not in force any more.
  std::vector<std::unique_ptr<MemorySource>> sources_;
  BudgetedSource source_;
  const bool by_stream_;
  std::vector<Lane> lanes_;
  std::atomic<bool> preallocated_{false};  // by the first lane that was used

  // What was to be preallocated and was not, until somebody has said so.
  std::atomic<size_t> short_bytes_{0};
  std::atomic<size_t> warned_of_mapped_{0};  // the last that was said
  std::atomic<bool> could_not_wait_{false};  // since the last report

  StreamTable streams_;
  Mutex trim_mutex_{LockRank::kTrim};  // what a trim holds is soon back
  Mutex report_mutex_{LockRank::kReport};
  std::string last_oom_report_;
};

// Holds every lock of a pool, its caches flushed.
class Pool::Everything {
 public:
  // Locks nothing yet: those who change several pools lock all of one kind
  // before any of the next.
  explicit Everything(Pool* pool);
  Everything(const Everything&) = delete;
  Everything& operator=(const Everything&) = delete;
  static constexpr int kPhases = 4;
  void Lock(int phase);  // 0, 1, ... in this order
  void LockAll() {
    for (int phase = 0; phase < kPhases; ++phase) Lock(phase);
  }

  uint64_t Live() const;  // allocations handed out
  size_t MappedBytes() const;
  size_t MappedAfterTrim() const;
  void Trim();  // REQUIRES: the source does not run ahead
  // Makes what Apply needs; may throw, and nothing has changed then.
  void Prepare(const PoolConfig& config);
  bool ChangesSource() const;  // whether what was prepared does
  // What was prepared is in force. Throws nothing.
  // REQUIRES: what is mapped is within the limit, and nothing is if the source
  // changes.
  void Apply();
  // As new; false where the device cannot be waited for, or does not take its
  // memory back.
  // REQUIRES: Live() == 0.
  bool Reset();

 private:
  void Flush();

  Pool* const pool_;
  std::unique_lock<Mutex> trim_lock_;
  Locked locked_;
  PoolConfig config_;
  std::unique_ptr<MemorySource> prepared_;
};

}  // namespace jax_bfc

#endif  // JAX_BFC_POOL_POOL_H_
