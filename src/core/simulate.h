// Replays a trace of allocations and frees through an Arena whose memory is
// only simulated, and measures placement and speed.
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

namespace jax_bfc {

inline constexpr size_t kReplayRangeBytes = size_t{1} << 46;

struct TraceEvent {
  bool is_allocate;
  uint32_t id;
  uint64_t bytes;  // of an allocation, as requested
};

struct ReplayResult {
  uint64_t events = 0;
  uint64_t peak_live_bytes = 0;   // of the sum of what was requested
  uint64_t high_water_bytes = 0;  // end of the highest chunk ever
  // The same with the whole range free from the start.
  uint64_t premapped_high_water_bytes = 0;
  double ratio = 0;           // high water / peak live; 0 without any live
  double ns_per_event = 0;    // median, the whole range free at the start
  uint64_t mapped_bytes = 0;  // at peak, growing by the default policy
  // Chunk bytes over requested bytes when the live bytes first peaked.
  uint64_t internal_fragmentation_bytes = 0;
};

// Replays the whole trace `repetitions` times for the time, and three times for
// the figures. O(events * log events).
// REQUIRES, or throws: repetitions > 0; an id is allocated only while it is not
// live and freed only while it is; the range is never exhausted.
ReplayResult Replay(std::span<const TraceEvent> trace, int repetitions = 5);

}  // namespace jax_bfc

#endif  // JAX_BFC_CORE_SIMULATE_H_
