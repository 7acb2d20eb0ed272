// Replays a trace of allocations and frees through an Arena whose memory is
// only simulated, or through a reference policy (policies/policy.h), and
// measures placement and speed.
//
// High water is the end of the highest chunk on one range without a bound, so
// that policies are compared by placement alone. What lies above it is no chunk
// yet: it is used where nothing below fits, and by no more than is missing. A
// chunk freed just below it is therefore a chunk of its own size.
//
// Two other figures, from replays of their own: how high the chunks reach when
// the whole range is one free chunk at the start, with which such a chunk then
// joins; and what growth by steps would map.
//
// Throws std::invalid_argument for a trace that makes no sense; it is for tools
// and tests, and no allocation of a program's own comes through here.
#ifndef JAX_BFC_CORE_SIMULATE_H_
#define JAX_BFC_CORE_SIMULATE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "core/trace.h"

namespace jax_bfc {

struct ReplayResult {
  uint64_t events = 0;
  uint64_t peak_live_bytes = 0;   // of the sum of what was requested
  uint64_t high_water_bytes = 0;  // end of the highest chunk ever
  // The same with the whole range free from the start.
  uint64_t premapped_high_water_bytes = 0;
  double ratio = 0;           // high water / peak live; 0 without any live
  double ns_per_event = 0;    // median, the whole range free at the start
  uint64_t mapped_bytes = 0;  // at peak, growing by the default policy
  // When the live bytes first peaked: chunk bytes minus requested bytes; and of
  // what was free below the high water so far, 1 - largest / total, 0 when
  // nothing was free.
  uint64_t internal_fragmentation_bytes = 0;
  double external_fragmentation = 0;
};

inline constexpr std::string_view kArenaPolicy = "bfc";
// "bfc", which is the arena, and the names of the reference policies.
std::vector<std::string_view> PolicyNames();

// Replays the whole trace `repetitions` times for the time, and two or three
// times for the figures. The arena takes O(events * log events). For a reference
// policy, what growth by steps would map follows from its high water, and the
// time is that of a plain implementation of its rules: no measure of what it is
// named after.
// REQUIRES, or throws: repetitions > 0; `policy` is one of PolicyNames(); an id
// is allocated only while it is not live and freed only while it is; the range
// is never exhausted.
ReplayResult Replay(std::span<const TraceEvent> trace,
                    std::string_view policy = kArenaPolicy,
                    int repetitions = 5);

// Where the arena puts each allocation, in their order, as in high_water_bytes.
std::vector<uint64_t> ArenaOffsets(const PreparedTrace& trace);

// The smallest multiple of kMaxAlignment, found by bisection, that serves the
// trace as the limit of an arena which grows by the default policy. (That a limit
// serves does not mean that every larger one does; this one was tried.)
// REQUIRES: `mapped_bytes` is that of the trace's replay.
uint64_t SmallestLimit(const PreparedTrace& trace, uint64_t mapped_bytes);

}  // namespace jax_bfc

#endif  // JAX_BFC_CORE_SIMULATE_H_
