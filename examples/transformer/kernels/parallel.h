// Splits the work of one handler into tiles and lets XLA's threads help.
//
// The caller never waits for a thread that has not come: it works through the
// tiles itself, together with those threads of the pool that are free, and at
// the end waits only for tiles that a thread is computing at that moment. A
// handler that waits for all that it scheduled deadlocks as soon as the threads
// of the pool are themselves such callers. What comes too late finds no tile
// left and touches nothing of the call, which may have ended.
#ifndef TRANSFORMER_PARALLEL_H_
#define TRANSFORMER_PARALLEL_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

#include "xla/ffi/api/ffi.h"

namespace transformer {

// How many threads may compute tiles of one call at once: that many slots of
// per-thread scratch are enough.
inline int64_t Slots(const xla::ffi::ThreadPool& pool, int64_t tiles,
                     int64_t max_threads) {
  return std::clamp<int64_t>(std::min({pool.num_threads(), tiles, max_threads}),
                             1, 256);
}

template <typename Body>
class ParallelCall {
 public:
  ParallelCall(int64_t tiles, const Body* body) : tiles_(tiles), body_(body) {}

  // Computes tiles until none is left to take.
  void Work() {
    int64_t tile = next_.fetch_add(1);
    if (tile >= tiles_) return;
    const int64_t slot = slots_.fetch_add(1);
    int64_t computed = 0;
    for (; tile < tiles_; tile = next_.fetch_add(1)) {
      (*body_)(tile, slot);
      ++computed;
    }
    // The last one to finish wakes the caller. Under the lock, so that the
    // caller cannot look, find it unfinished, and miss the call.
    std::lock_guard<std::mutex> lock(mutex_);
    finished_ += computed;
    if (finished_ == tiles_) done_.notify_one();
  }

  void WaitForTilesInWork() {
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return finished_ == tiles_; });
  }

 private:
  const int64_t tiles_;
  const Body* const body_;  // alive while a tile is in work
  std::atomic<int64_t> next_{0};
  std::atomic<int64_t> slots_{0};
  std::mutex mutex_;
  std::condition_variable done_;
  int64_t finished_ = 0;  // guarded by mutex_
};

// Calls body(tile, slot) once for each tile in [0, tiles), from up to `slots`
// threads, each with a slot of its own in [0, slots). Returns when all are
// done.
template <typename Body>
void ParallelFor(xla::ffi::ThreadPool& pool, int64_t tiles, int64_t slots,
                 const Body& body) {
  const int64_t helpers = std::min(slots, tiles) - 1;
  if (helpers <= 0) {
    for (int64_t tile = 0; tile < tiles; ++tile) body(tile, 0);
    return;
  }
  auto call = std::make_shared<ParallelCall<Body>>(tiles, &body);
  for (int64_t i = 0; i < helpers; ++i) {
    pool.Schedule([call] { call->Work(); });
  }
  call->Work();
  call->WaitForTilesInWork();
}

}  // namespace transformer

#endif  // TRANSFORMER_PARALLEL_H_
