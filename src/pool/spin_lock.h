// A lock for sections of a few nanoseconds that are almost never contended: one
// atomic exchange to lock, a plain store to unlock.
#ifndef JAX_BFC_POOL_SPIN_LOCK_H_
#define JAX_BFC_POOL_SPIN_LOCK_H_

#include <sched.h>

#include <atomic>

namespace jax_bfc {

class SpinLock {
 public:
  void lock() {
    while (locked_.exchange(true, std::memory_order_acquire)) Wait();
  }
  void unlock() { locked_.store(false, std::memory_order_release); }

 private:
  // The holder may have lost its core: after a short while, let it run.
  void Wait() {
    for (int i = 0; locked_.load(std::memory_order_relaxed); ++i) {
      if (i >= 64) sched_yield();
    }
  }
  std::atomic<bool> locked_{false};
};

}  // namespace jax_bfc

#endif  // JAX_BFC_POOL_SPIN_LOCK_H_
