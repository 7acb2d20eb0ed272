// A quantity that many threads change, and its peak.
//
// Each slot keeps its own part and adds it to the shared one only when it has
// changed by more than a quantum: a shared counter would cost more than the
// allocation that it counts. The sum is exact. The peak is exact while one slot
// changes it, else within a quantum for each slot.
#ifndef JAX_BFC_POOL_GAUGE_H_
#define JAX_BFC_POOL_GAUGE_H_

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace jax_bfc {

struct SharedGauge {
  std::atomic<int64_t> value{0};
  std::atomic<int64_t> peak{0};

  void RaisePeak(int64_t candidate) {
    int64_t seen = peak.load(std::memory_order_relaxed);
    while (seen < candidate &&
           !peak.compare_exchange_weak(seen, candidate,
                                       std::memory_order_relaxed)) {
    }
  }
};

// A slot's part. Not thread-safe: under the slot's lock.
struct LocalGauge {
  int64_t delta = 0;  // not yet in the shared value
  int64_t high = 0;   // the highest delta since it was last published

  void Add(int64_t change, int64_t quantum, SharedGauge& shared) {
    delta += change;
    high = std::max(high, delta);
    // Beyond the quantum on either side, in one comparison.
    if (static_cast<uint64_t>(delta + quantum) >
        2 * static_cast<uint64_t>(quantum)) [[unlikely]] {
      Publish(shared);
    }
  }

  void Publish(SharedGauge& shared) {
    const int64_t before =
        shared.value.fetch_add(delta, std::memory_order_relaxed);
    shared.RaisePeak(before + high);
    delta = high = 0;
  }
};

// Adds up a gauge from its shared part and each slot's.
struct GaugeSum {
  int64_t delta = 0;
  int64_t most_above = 0;  // of a slot's high over its own delta

  void Add(const LocalGauge& local) {
    delta += local.delta;
    most_above = std::max(most_above, local.high - local.delta);
  }
  // While the slots are locked.
  size_t Value(const SharedGauge& shared) const {
    return static_cast<size_t>(shared.value.load(std::memory_order_relaxed) +
                               delta);
  }
  size_t Peak(const SharedGauge& shared) const {
    return std::max(
        static_cast<size_t>(shared.peak.load(std::memory_order_relaxed)),
        Value(shared) + static_cast<size_t>(most_above));
  }
};

}  // namespace jax_bfc

#endif  // JAX_BFC_POOL_GAUGE_H_
