// How an arena grows, as pure functions.
#ifndef JAX_BFC_CORE_GROWTH_H_
#define JAX_BFC_CORE_GROWTH_H_

#include <algorithm>
#include <cstddef>
#include <optional>

#include "core/size_class.h"

namespace jax_bfc {

struct GrowthPolicy {
  size_t initial_bytes = size_t{2} << 20;
  double growth_factor = 2.0;  // at least 1
  size_t max_growth_bytes = size_t{1} << 30;
};

// The step after one of `previous_bytes` (0: none yet), before it is made large
// enough for the request that wants it.
constexpr size_t NextStep(const GrowthPolicy& policy, size_t previous_bytes) {
  const size_t most = std::max(policy.initial_bytes, policy.max_growth_bytes);
  if (previous_bytes == 0) return policy.initial_bytes;
  const double next =
      static_cast<double>(previous_bytes) * policy.growth_factor;
  if (next >= static_cast<double>(most)) return most;
  return std::max(policy.initial_bytes, static_cast<size_t>(next));
}
static_assert(NextStep({}, 0) == size_t{2} << 20);
static_assert(NextStep({}, size_t{2} << 20) == size_t{4} << 20);
static_assert(NextStep({}, size_t{1} << 30) == size_t{1} << 30);

// The next smaller attempt after the source refused `refused_bytes`, down to
// `needed_bytes`: always strictly smaller, so a source that always refuses ends
// the loop.
// REQUIRES: both are multiples of `granularity`.
constexpr std::optional<size_t> NextAttempt(size_t needed_bytes,
                                            size_t refused_bytes,
                                            size_t granularity) {
  if (refused_bytes <= needed_bytes) return std::nullopt;
  return std::max(needed_bytes, RoundDown(refused_bytes / 2, granularity));
}
static_assert(!NextAttempt(4096, 4096, 4096));
static_assert(*NextAttempt(4096, 8192, 4096) == 4096);
static_assert(*NextAttempt(8192, 4096 * 3, 4096) == 8192);

}  // namespace jax_bfc

#endif  // JAX_BFC_CORE_GROWTH_H_
