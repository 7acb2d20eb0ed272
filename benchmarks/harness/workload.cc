#include "harness/workload.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <random>
#include <vector>

namespace jax_bfc::bench {
namespace {

constexpr size_t kKiB = size_t{1} << 10;
constexpr size_t kMiB = size_t{1} << 20;
constexpr size_t kQuantum = 256;

// Both instances of a workload's one loop, Derived::Loop(pairs, probe).
template <typename Derived>
class WorkloadOf : public Workload {
 public:
  size_t Run(size_t pairs, DirectProbe& probe) final {
    return static_cast<Derived*>(this)->Loop(pairs, probe);
  }
  size_t Run(size_t pairs, TimedProbe& probe) final {
    return static_cast<Derived*>(this)->Loop(pairs, probe);
  }
};

class SameSize : public WorkloadOf<SameSize> {
 public:
  template <typename Probe>
  size_t Loop(size_t pairs, Probe& probe) {
    for (size_t i = 0; i < pairs; ++i) probe.Free(probe.Allocate(kMiB));
    return pairs;
  }
};

class Lifo : public WorkloadOf<Lifo> {
 public:
  template <typename Probe>
  size_t Loop(size_t pairs, Probe& probe) {
    size_t done = 0;
    for (; done < pairs; done += 4) {
      const Block a = probe.Allocate(64 * kKiB);
      const Block b = probe.Allocate(kMiB);
      const Block c = probe.Allocate(4 * kMiB);
      const Block d = probe.Allocate(16 * kMiB);
      probe.Free(d);
      probe.Free(c);
      probe.Free(b);
      probe.Free(a);
    }
    return done;
  }
};

class LogUniform {
 public:
  LogUniform(size_t least, size_t most)
      : log_(std::log(static_cast<double>(least)),
             std::log(static_cast<double>(most))) {}

  size_t operator()(std::mt19937_64& random) {
    return static_cast<size_t>(std::exp(log_(random)));
  }

 private:
  std::uniform_real_distribution<double> log_;
};

// Replaces live blocks; which and by what size was drawn beforehand.
class Replace : public WorkloadOf<Replace> {
 public:
  struct Step {
    uint32_t slot;
    uint32_t bytes;
  };
  static constexpr size_t kSteps = size_t{1} << 16;  // then round again

  Replace(const Side& side, std::vector<Step> steps,
          std::vector<size_t> live_bytes)
      : side_(side), steps_(std::move(steps)), bytes_(std::move(live_bytes)) {
    Fill();
  }

  template <typename Probe>
  size_t Loop(size_t pairs, Probe& probe) {
    for (size_t i = 0; i < pairs; ++i) {
      const Step step = steps_[next_++ & (kSteps - 1)];
      probe.Free(live_[step.slot]);
      live_[step.slot] = probe.Allocate(step.bytes);
    }
    return pairs;
  }

  bool Restart() override {
    DirectProbe probe(side_);
    for (const Block& block : live_) probe.Free(block);
    live_.clear();
    next_ = 0;
    Fill();
    return true;
  }

 private:
  void Fill() {
    DirectProbe probe(side_);
    for (const size_t bytes : bytes_) live_.push_back(probe.Allocate(bytes));
  }

  const Side side_;
  const std::vector<Step> steps_;
  const std::vector<size_t> bytes_;
  std::vector<Block> live_;
  size_t next_ = 0;
};

std::unique_ptr<Workload> MakeReplace(const Side& side, size_t live,
                                      LogUniform sizes, bool oldest_first,
                                      uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<size_t> live_bytes(live);
  for (size_t& bytes : live_bytes) bytes = sizes(random);
  std::uniform_int_distribution<size_t> any(0, live - 1);
  std::vector<Replace::Step> steps(Replace::kSteps);
  for (size_t i = 0; i < steps.size(); ++i) {
    steps[i] = {
        static_cast<uint32_t>(oldest_first ? i % live : any(random)),
        static_cast<uint32_t>(sizes(random)),
    };
  }
  return std::make_unique<Replace>(side, std::move(steps),
                                   std::move(live_bytes));
}

// Leaves a free chunk of each of `sizes`, each between two chunks in use.
void MakeFreeChunks(const Side& side, const std::vector<size_t>& sizes) {
  DirectProbe probe(side);
  std::vector<Block> chunks;
  chunks.reserve(sizes.size());
  for (const size_t bytes : sizes) {
    chunks.push_back(probe.Allocate(bytes));
    probe.Allocate(kQuantum);  // stays in use
  }
  for (const Block& chunk : chunks) probe.Free(chunk);
}

// From the least size of a bin on, a 64th of it, which every BFC allocator here
// puts into one bin: the lower half of these sizes is free, requests come from
// the upper half.
constexpr size_t kBinBytes = kMiB;
constexpr size_t kHalfBin = kBinBytes / 64 / 2;

class FreeChunks : public WorkloadOf<FreeChunks> {
 public:
  FreeChunks(const Side& side, size_t n, bool varied) {
    std::vector<size_t> sizes(n);
    for (size_t i = 0; i < n; ++i) {
      sizes[i] = kBinBytes + i * kQuantum % kHalfBin;
    }
    MakeFreeChunks(side, sizes);
    for (size_t i = 0; i < requests_.size(); ++i) {
      requests_[i] = kBinBytes + kHalfBin + (varied ? i * kQuantum : 0);
    }
  }

  template <typename Probe>
  size_t Loop(size_t pairs, Probe& probe) {
    for (size_t i = 0; i < pairs; ++i) {
      const size_t bytes = requests_[next_++ % requests_.size()];
      probe.Free(probe.Allocate(bytes));
    }
    return pairs;
  }

 private:
  std::array<size_t, kHalfBin / kQuantum> requests_;
  size_t next_ = 0;
};

std::unique_ptr<Workload> MakeMixed(const Side& side, size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  LogUniform free_bytes(512, 64 * kKiB);
  std::vector<size_t> sizes(n);
  for (size_t& bytes : sizes) bytes = free_bytes(random);
  MakeFreeChunks(side, sizes);
  // So that nothing grows from here on.
  DirectProbe probe(side);
  probe.Free(probe.Allocate(64 * kMiB));
  return MakeReplace(side, 64, LogUniform(kQuantum, 64 * kKiB),
                     /*oldest_first=*/true, seed + 1);
}

}  // namespace

std::unique_ptr<Workload> MakeWorkload(std::string_view name, size_t n,
                                       const Side& side, uint64_t seed) {
  if (name == "same_size") return std::make_unique<SameSize>();
  if (name == "lifo") return std::make_unique<Lifo>();
  if (name == "churn") {
    return MakeReplace(side, 1000, LogUniform(kQuantum, 64 * kMiB),
                       /*oldest_first=*/false, seed);
  }
  if (name == "free_chunks") {
    return std::make_unique<FreeChunks>(side, n, /*varied=*/false);
  }
  if (name == "free_chunks_varied") {
    return std::make_unique<FreeChunks>(side, n, /*varied=*/true);
  }
  if (name == "mixed") return MakeMixed(side, n, seed);
  return nullptr;
}

}  // namespace jax_bfc::bench
