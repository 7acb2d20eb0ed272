// Runs one function on a number of threads that start together.
//
// The calling thread is the first of them. Threads wait asleep between runs and
// spin at the start of one, so that they overlap. Where there is a core for
// each they are pinned, and move by one core from run to run.
#ifndef JAX_BFC_BENCHMARKS_HARNESS_TEAM_H_
#define JAX_BFC_BENCHMARKS_HARNESS_TEAM_H_

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace jax_bfc::bench {

class Team {
 public:
  explicit Team(int threads) : threads_(threads) {
    cpu_set_t allowed;
    sched_getaffinity(0, sizeof(allowed), &allowed);
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &allowed)) cpus_.push_back(cpu);
    }
    for (int i = 1; i < threads; ++i)
      std::thread([this, i] { Work(i); }).detach();
  }
  Team(const Team&) = delete;  // threads hold on to it until the process ends
  Team& operator=(const Team&) = delete;

  int threads() const { return threads_; }
  // Of all threads together, what the machine can run at once.
  int cores() const {
    return std::min(threads_, static_cast<int>(cpus_.size()));
  }

  // Calls `body(i)` on thread i, for each; returns when all have returned.
  void Run(const std::function<void(int)>& body) {
    {
      std::lock_guard lock(mutex_);
      body_ = &body;
      running_ = threads_;
      ++run_;
    }
    wake_.notify_all();
    Take(0);
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return running_ == 0; });
  }

  // Within a run: waits until every thread is here.
  void Meet() {
    if (threads_ == 1) return;
    const int round = round_.load();
    if (arrived_.fetch_add(1) + 1 == threads_) {
      arrived_ = 0;
      round_ = round + 1;
      return;
    }
    while (round_.load() == round) {
      if (cores() < threads_) std::this_thread::yield();
    }
  }

 private:
  void Work(int i) {
    for (int seen = 0;;) {
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return run_ != seen; });
        seen = run_;
      }
      Take(i);
    }
  }

  void Take(int i) {
    Pin(i);
    (*body_)(i);
    std::lock_guard lock(mutex_);
    if (--running_ == 0) done_.notify_all();
  }

  void Pin(int i) {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (cores() == threads_) {
      CPU_SET(cpus_[(i + run_) % cpus_.size()], &set);
    } else {
      for (const int cpu : cpus_) CPU_SET(cpu, &set);
    }
    pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
  }

  const int threads_;
  std::vector<int> cpus_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(int)>* body_ = nullptr;
  int run_ = 0;
  int running_ = 0;
  std::atomic<int> arrived_{0}, round_{0};
};

}  // namespace jax_bfc::bench

#endif  // JAX_BFC_BENCHMARKS_HARNESS_TEAM_H_
