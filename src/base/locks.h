// Every lock of the library, but for those of the bindings to Python, in the
// order in which they may be taken.
//
// A thread may take a lock only if its rank is above the ranks of all locks
// that the thread holds. Trying for a lock without waiting for it (try_lock) is
// allowed in any order, since it cannot deadlock. Builds with
// JAX_BFC_CHECK_LOCKS abort, naming both locks, where a thread breaks the
// order; clang's -Wthread-safety checks which lock guards what.
//
// There are two kinds. Mutex is for sections of any length: who waits sleeps.
// ShortLock is for sections of some nanoseconds; who waits spins for about a
// microsecond and then sleeps too. Nothing slow is done under a ShortLock: no
// system call, no call of the CUDA driver, no file, no wait for a Mutex.
// Statistics, snapshots and resets take all of a pool's at once to see one
// moment, and walk over its records; then those who wait sleep.
#ifndef JAX_BFC_BASE_LOCKS_H_
#define JAX_BFC_BASE_LOCKS_H_

#include <atomic>
#include <mutex>

#ifdef __clang__
#define JAX_BFC_ANNOTATE(x) __attribute__((x))
#else
#define JAX_BFC_ANNOTATE(x)
#endif
#define JAX_BFC_GUARDED_BY(lock) JAX_BFC_ANNOTATE(guarded_by(lock))
#define JAX_BFC_REQUIRES(...) JAX_BFC_ANNOTATE(requires_capability(__VA_ARGS__))
#define JAX_BFC_ACQUIRE(...) JAX_BFC_ANNOTATE(acquire_capability(__VA_ARGS__))
#define JAX_BFC_RELEASE(...) JAX_BFC_ANNOTATE(release_capability(__VA_ARGS__))
#define JAX_BFC_TRY_ACQUIRE(...) \
  JAX_BFC_ANNOTATE(try_acquire_capability(__VA_ARGS__))
// For functions that take locks in a way that the analysis cannot follow, such
// as all of a pool's slots.
#define JAX_BFC_UNCHECKED JAX_BFC_ANNOTATE(no_thread_safety_analysis)

namespace jax_bfc {

enum class LockRank : int {
  kRegistry,      // process-wide: the configuration, which pools exist
  kTargets,       // process-wide: FFI targets and types
  kGraphScratch,  // a call site: what CUDA graphs hold for it
  kStreams,       // a pool: which stream gets which lane
  kTrim,          // a pool: one trim or reset at a time
  kNewSlots,      // a pool: no slot is made
  kLane,          // a lane: its arena. Several: in the order of their index
  kSlot,          // a slot. Several: in the order of their index
  kPeaks,         // a pool: what jax_bfc.peak() counts
  kDeviceIdle,    // a CUDA device: waiting for it
  kDeviceMemory,  // a CUDA device: what the driver is to take back
  kDriver,        // process-wide: loading the CUDA driver
  kReport,        // a pool: its last out-of-memory report
  kRecorderFile,  // process-wide: writing a recording's file
  kRecorder,      // process-wide: the recording
  kKernels,       // process-wide: the names of kernels
};

namespace internal {
#ifdef JAX_BFC_CHECK_LOCKS
// Abort where the order is broken; see locks.cc.
void BeforeLock(LockRank rank);
void AfterLock(LockRank rank);
void BeforeUnlock(LockRank rank);
#else
inline void BeforeLock(LockRank) {}
inline void AfterLock(LockRank) {}
inline void BeforeUnlock(LockRank) {}
#endif
}  // namespace internal

class JAX_BFC_ANNOTATE(capability("mutex")) Mutex {
 public:
  explicit constexpr Mutex(LockRank rank) noexcept : rank_(rank) {}
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void lock() JAX_BFC_ACQUIRE() {
    internal::BeforeLock(rank_);
    mutex_.lock();
    internal::AfterLock(rank_);
  }
  void unlock() JAX_BFC_RELEASE() {
    internal::BeforeUnlock(rank_);
    mutex_.unlock();
  }
  bool try_lock() JAX_BFC_TRY_ACQUIRE(true) {
    if (!mutex_.try_lock()) return false;
    internal::AfterLock(rank_);
    return true;
  }

 private:
  std::mutex mutex_;
  const LockRank rank_;
};

// One atomic exchange to lock, a plain store to unlock.
class JAX_BFC_ANNOTATE(capability("mutex")) ShortLock {
 public:
  explicit constexpr ShortLock(LockRank rank) noexcept : rank_(rank) {}
  ShortLock(const ShortLock&) = delete;
  ShortLock& operator=(const ShortLock&) = delete;

  void lock() JAX_BFC_ACQUIRE() {
    internal::BeforeLock(rank_);
    while (locked_.exchange(true, std::memory_order_acquire)) Wait();
    internal::AfterLock(rank_);
  }
  void unlock() JAX_BFC_RELEASE() {
    internal::BeforeUnlock(rank_);
    locked_.store(false, std::memory_order_release);
  }

 private:
  void Wait();  // until it looks unlocked
  std::atomic<bool> locked_{false};
  [[maybe_unused]] const LockRank rank_;
};

// As std::lock_guard, which clang's analysis does not know.
template <typename Lock>
class JAX_BFC_ANNOTATE(scoped_lockable) Guard {
 public:
  explicit Guard(Lock& lock) JAX_BFC_ACQUIRE(lock) : lock_(lock) {
    lock.lock();
  }
  ~Guard() JAX_BFC_RELEASE() { lock_.unlock(); }
  Guard(const Guard&) = delete;
  Guard& operator=(const Guard&) = delete;

 private:
  Lock& lock_;
};

}  // namespace jax_bfc

#endif  // JAX_BFC_BASE_LOCKS_H_
