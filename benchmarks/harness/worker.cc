// A worker: one allocator in one process, told what to run over a pipe.
//
//   worker SIDE ARENA_BYTES
//
// Commands, one a line, each answered by one line of JSON:
//   open WORKLOAD N THREADS    the next index from 0; what the clock costs
//   calibrate INDEX NS         sets the pairs of a batch, so that it takes NS
//   batch INDEX                wall time and pairs a thread of one batch
//   samples INDEX COUNT NS R   percentiles of COUNT single operations a thread,
//                              or as many as NS allow; and again of the least
//                              of R replays, where the workload can restart
//   first BYTES                what the first allocation of the process takes
//
// One process for each allocator keeps their heaps, their settings and their
// thread-local state apart; the caller takes turns between the processes, so
// that whatever drifts on the machine hits all of them.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "harness/clock.h"
#include "harness/memory.h"
#include "harness/probe.h"
#include "harness/side.h"
#include "harness/team.h"
#include "harness/workload.h"

namespace jax_bfc::bench {

void Die(const char* what) {
  std::fprintf(stderr, "benchmark worker: %s\n", what);
  std::_Exit(1);
}

namespace {

// A workload on some threads, all of them on the one side.
class Task {
 public:
  Task(const Side& side, const std::string& workload, size_t n, int threads)
      : side_(side), team_(threads), spans_(threads) {
    for (int i = 0; i < threads; ++i) {
      workloads_.push_back(MakeWorkload(workload, n, side, /*seed=*/i + 1));
      if (workloads_.back() == nullptr) Die("no such workload");
    }
  }

  void Calibrate(uint64_t target_ns) {
    for (pairs_ = 1;; pairs_ *= 2) {
      const uint64_t ns = std::max<uint64_t>(TimeBatch(), 1);
      if (ns < target_ns / 4 && pairs_ < (size_t{1} << 30)) continue;
      pairs_ = std::max<size_t>(1, pairs_ * target_ns / ns);
      return;
    }
  }

  void Batch() {
    const uint64_t ns = TimeBatch();
    std::printf("{\"wall_ns\": %lu, \"pairs\": %zu, \"cores\": %d}\n", ns, ran_,
                team_.cores());
  }

  void Sample(size_t count, uint64_t budget_ns, int replays, TickRate rate) {
    std::vector<Samples> raw(workloads_.size());
    team_.Run([&](int i) {
      team_.Meet();
      raw[i] = Collect(*workloads_[i], count, budget_ns);
    });
    Samples all;
    for (const Samples& one : raw) Append(one, all);
    std::printf("{");
    Print("allocate", all.allocations, rate);
    Print(", \"free", all.frees, rate);
    if (replays > 0 && workloads_.size() == 1 && workloads_[0]->Restart()) {
      Samples least = Collect(*workloads_[0], count, budget_ns);
      for (int i = 1; i < replays; ++i) {
        workloads_[0]->Restart();
        Lower(least.allocations,
              Collect(*workloads_[0], count, budget_ns).allocations);
      }
      Print(", \"least", least.allocations, rate);
    }
    std::printf("}\n");
  }

 private:
  struct alignas(128) Span {
    uint64_t begin, end;
    size_t pairs;
  };

  // From the first thread's start to the last one's end. What the other
  // processes left of the caches is warmed up before.
  uint64_t TimeBatch() {
    team_.Run([&](int i) {
      DirectProbe probe(side_);
      workloads_[i]->Run(pairs_ / 8 + 1, probe);
      team_.Meet();
      const uint64_t begin = NowNs();
      const size_t pairs = workloads_[i]->Run(pairs_, probe);
      spans_[i] = {begin, NowNs(), pairs};
    });
    uint64_t begin = std::numeric_limits<uint64_t>::max(), end = 0;
    for (const Span& span : spans_) {
      begin = std::min(begin, span.begin);
      end = std::max(end, span.end);
    }
    ran_ = spans_[0].pairs;
    return end - begin;
  }

  Samples Collect(Workload& workload, size_t count, uint64_t budget_ns) const {
    Samples samples;
    // Written once, so that no page fault falls into what is timed.
    samples.allocations.assign(count + 8, 1);
    samples.frees.assign(count + 8, 1);
    samples.allocations.clear();
    samples.frees.clear();
    DirectProbe warm(side_);
    workload.Run(std::min<size_t>(pairs_, 64), warm);
    TimedProbe probe(side_, &samples);
    const uint64_t begin = NowNs();
    while (samples.allocations.size() < count && NowNs() - begin < budget_ns) {
      const size_t left = count - samples.allocations.size();
      workload.Run(std::min({pairs_, left, size_t{1024}}), probe);
    }
    return samples;
  }

  static void Append(const Samples& from, Samples& to) {
    to.allocations.insert(to.allocations.end(), from.allocations.begin(),
                          from.allocations.end());
    to.frees.insert(to.frees.end(), from.frees.begin(), from.frees.end());
  }

  static void Lower(std::vector<uint32_t>& to,
                    const std::vector<uint32_t>& from) {
    to.resize(std::min(to.size(), from.size()));
    for (size_t i = 0; i < to.size(); ++i) to[i] = std::min(to[i], from[i]);
  }

  static void Print(const char* name, std::vector<uint32_t>& ticks,
                    TickRate rate) {
    std::sort(ticks.begin(), ticks.end());
    const auto at = [&](double quantile) {
      const size_t i =
          static_cast<size_t>(quantile * static_cast<double>(ticks.size() - 1));
      const uint64_t t = ticks[i];
      return static_cast<double>(t - std::min(t, rate.overhead_ticks)) *
             rate.ns_per_tick;
    };
    std::printf(
        "%s%s\": {\"count\": %zu, \"p50\": %.1f, \"p99\": %.1f, "
        "\"p99_99\": %.1f, \"max\": %.1f}",
        name[0] == ',' ? "" : "\"", name, ticks.size(), at(0.5), at(0.99),
        at(0.9999), at(1));
  }

  const Side side_;
  Team team_;
  std::vector<std::unique_ptr<Workload>> workloads_;
  std::vector<Span> spans_;
  size_t pairs_ = 1;
  size_t ran_ = 0;
};

void MeasureFirst(const std::string& name, size_t arena_bytes, size_t bytes) {
  const size_t before = AnonymousBytes();
  const uint64_t begin = NowNs();
  const Side side = OpenSide(name, arena_bytes);
  if (side.allocate == nullptr) Die("no such side");
  const Block block = side.allocate(side.self, bytes);
  const uint64_t end = NowNs();
  if (block.ptr == nullptr) Die("the first allocation failed");
  std::printf("{\"ns\": %lu, \"host_bytes\": %zu}\n", end - begin,
              AnonymousBytes() - before);
}

int Main(int argc, char** argv) {
  if (argc != 3) Die("usage: worker SIDE ARENA_BYTES");
  const std::string name = argv[1];
  const size_t arena_bytes = std::strtoull(argv[2], nullptr, 10);
  const TickRate rate = MeasureTickRate();
  // A process with JAX in it has more than one thread, and some allocators
  // are faster where there is only one.
  std::thread([] { pause(); }).detach();

  Side side{};
  std::vector<std::unique_ptr<Task>> tasks;
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream words(line);
    std::string command;
    words >> command;
    if (command == "first") {
      size_t bytes = 0;
      words >> bytes;
      MeasureFirst(name, arena_bytes, bytes);
    } else if (command == "open") {
      std::string workload;
      size_t n = 0;
      int threads = 1;
      words >> workload >> n >> threads;
      if (side.allocate == nullptr) side = OpenSide(name, arena_bytes);
      if (side.allocate == nullptr) Die("no such side");
      tasks.push_back(std::make_unique<Task>(side, workload, n, threads));
      std::printf("{\"clock_ns\": %.1f, \"clock_step_ns\": %.1f}\n",
                  static_cast<double>(rate.overhead_ticks) * rate.ns_per_tick,
                  static_cast<double>(rate.step_ticks) * rate.ns_per_tick);
    } else {
      size_t index = 0, count = 0;
      uint64_t ns = 0;
      int replays = 0;
      words >> index;
      if (index >= tasks.size()) Die("no such task");
      if (command == "calibrate") {
        words >> ns;
        tasks[index]->Calibrate(ns);
        std::printf("{}\n");
      } else if (command == "batch") {
        tasks[index]->Batch();
      } else if (command == "samples") {
        words >> count >> ns >> replays;
        tasks[index]->Sample(count, ns, replays, rate);
      } else {
        Die("no such command");
      }
    }
    std::fflush(stdout);
  }
  std::_Exit(0);  // no tear-down: it is not what is measured
}

}  // namespace
}  // namespace jax_bfc::bench

int main(int argc, char** argv) { return jax_bfc::bench::Main(argc, argv); }
