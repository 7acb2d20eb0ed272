// Two clocks: one for batches, one for single operations.
//
// Ticks() reads the processor's constant-rate counter, fenced so that what is
// timed lies between two reads. What a read costs is measured and subtracted.
#ifndef JAX_BFC_BENCHMARKS_HARNESS_CLOCK_H_
#define JAX_BFC_BENCHMARKS_HARNESS_CLOCK_H_

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>

#if defined(__x86_64__)
#include <x86intrin.h>
#endif

namespace jax_bfc::bench {

inline uint64_t NowNs() {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(
          std::chrono::steady_clock::now().time_since_epoch())
          .count());
}

inline uint64_t Ticks() {
#if defined(__x86_64__)
  _mm_lfence();
  const uint64_t ticks = __rdtsc();
  _mm_lfence();
  return ticks;
#elif defined(__aarch64__)
  uint64_t ticks;
  asm volatile("isb\n\tmrs %0, cntvct_el0\n\tisb" : "=r"(ticks)::"memory");
  return ticks;
#else
  return NowNs();
#endif
}

struct TickRate {
  double ns_per_tick;
  uint64_t overhead_ticks;  // between two reads with nothing between them
  uint64_t step_ticks;      // the least by which two such spans differ
};

inline TickRate MeasureTickRate() {
  const uint64_t ns = NowNs();
  const uint64_t ticks = Ticks();
  while (NowNs() - ns < 20'000'000) {
  }
  const double ns_per_tick =
      static_cast<double>(NowNs() - ns) / static_cast<double>(Ticks() - ticks);
  std::array<uint64_t, 1001> gaps;
  for (uint64_t& gap : gaps) {
    const uint64_t before = Ticks();
    gap = Ticks() - before;
  }
  std::sort(gaps.begin(), gaps.end());
  uint64_t step = gaps.back();
  for (size_t i = 1; i < gaps.size(); ++i) {
    if (gaps[i] != gaps[i - 1]) step = std::min(step, gaps[i] - gaps[i - 1]);
  }
  return {ns_per_tick, gaps[gaps.size() / 2], step};
}

}  // namespace jax_bfc::bench

#endif  // JAX_BFC_BENCHMARKS_HARNESS_CLOCK_H_
