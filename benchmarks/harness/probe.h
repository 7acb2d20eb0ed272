// How a workload reaches its side: directly, or with every operation timed.
//
// Workloads are written once, as templates over the probe, so that what is
// timed as a batch and what is timed by operation is the same loop.
#ifndef JAX_BFC_BENCHMARKS_HARNESS_PROBE_H_
#define JAX_BFC_BENCHMARKS_HARNESS_PROBE_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "harness/clock.h"
#include "harness/side.h"

namespace jax_bfc::bench {

class DirectProbe {
 public:
  explicit DirectProbe(const Side& side) : side_(side) {}

  Block Allocate(size_t bytes) {
    const Block block = side_.allocate(side_.self, bytes);
    if (block.ptr == nullptr) [[unlikely]] {
      Die("an allocation failed: the arena of this workload is too small");
    }
    return block;
  }
  void Free(Block block) { side_.free(side_.self, block); }

 private:
  const Side side_;
};

// Ticks of every operation, in order.
struct Samples {
  std::vector<uint32_t> allocations, frees;
};

class TimedProbe {
 public:
  TimedProbe(const Side& side, Samples* samples)
      : direct_(side), samples_(samples) {}

  Block Allocate(size_t bytes) {
    const uint64_t before = Ticks();
    const Block block = direct_.Allocate(bytes);
    Record(samples_->allocations, Ticks() - before);
    return block;
  }
  void Free(Block block) {
    const uint64_t before = Ticks();
    direct_.Free(block);
    Record(samples_->frees, Ticks() - before);
  }

 private:
  static void Record(std::vector<uint32_t>& to, uint64_t ticks) {
    constexpr uint64_t kMost = std::numeric_limits<uint32_t>::max();
    to.push_back(static_cast<uint32_t>(std::min(ticks, kMost)));
  }

  DirectProbe direct_;
  Samples* const samples_;
};

}  // namespace jax_bfc::bench

#endif  // JAX_BFC_BENCHMARKS_HARNESS_PROBE_H_
