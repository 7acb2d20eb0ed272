// The smallest pool that would have served a trace: an offline placement, which
// knows every lifetime beforehand, beside what the arena needs online.
//
// The problem is dynamic storage allocation, NP-hard (Garey and Johnson, SR2).
// The placement is first fit by decreasing size: the largest allocation first,
// each at the lowest address that is free during its whole life (XLA's heap
// simulator and TensorFlow Lite's memory planner do alike). Then squeaky wheel
// optimization (Joslin and Clements, JAIR 10, 1999): what came to lie above the
// lower bound counts double in the next order, and all is placed again. The
// arena's own placement stands where no pass does better, so that a plan is
// never worse than it.
//
// Costs by the pair of allocations that are live together, at most kMostVisits
// in all; a pass that would exceed them is not begun. The same trace gets the
// same plan on every machine. Not optimal, and no bound is proved.
#ifndef JAX_BFC_CORE_PLAN_H_
#define JAX_BFC_CORE_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/trace.h"

namespace jax_bfc {

// Of allocation i, from its own allocation to before allocation `end`: as far
// as placement goes, time passes with allocations only.
struct Lifetime {
  uint64_t bytes;  // rounded to kQuantum
  uint32_t end;    // > i
};

struct Packing {
  std::vector<uint64_t> offsets;  // by allocation
  uint64_t high_water_bytes = 0;
  int passes = 0;  // over all allocations
};

inline constexpr int kMostPasses = 32;
inline constexpr int kPatience = 12;  // passes that better nothing
inline constexpr uint64_t kMostVisits = uint64_t{1} << 31;
// A pass that ends within this part of the lower bound is the last.
inline constexpr double kPackedWell = 0.001;

std::vector<Lifetime> LifetimesOf(const PreparedTrace& trace);

// The most bytes live at once: no placement needs less.
uint64_t PeakBytes(std::span<const Lifetime> lifetimes);

// Improves on `start`, which is a valid placement.
// REQUIRES: PeakBytes(lifetimes) <= 2 * kReplayRangeBytes.
Packing Pack(std::span<const Lifetime> lifetimes, Packing start,
             uint64_t most_visits = kMostVisits);

struct TracePlan {
  uint64_t allocations = 0;
  uint64_t peak_live_bytes = 0;   // as requested: the lower bound
  uint64_t high_water_bytes = 0;  // the arena's, online
  uint64_t limit_bytes = 0;       // SmallestLimit (simulate.h)
  Packing packing;
};

// Throws as Replay does.
TracePlan PlanTrace(std::span<const TraceEvent> trace);

}  // namespace jax_bfc

#endif  // JAX_BFC_CORE_PLAN_H_
