// A trace of allocations and frees, checked, for replay and planning.
#ifndef JAX_BFC_CORE_TRACE_H_
#define JAX_BFC_CORE_TRACE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace jax_bfc {

inline constexpr size_t kReplayRangeBytes = size_t{1} << 46;

struct TraceEvent {
  bool is_allocate;
  uint32_t id;
  uint64_t bytes;  // of an allocation, as requested
};

// The same events with each id replaced by an index into an array.
struct PreparedTrace {
  struct Step {
    bool is_allocate;
    uint32_t slot;
    uint64_t bytes;
  };
  std::vector<Step> steps;
  size_t slots = 0;
  uint64_t peak_live_bytes = 0;  // of the sum of what was requested
  size_t peak_step = 0;          // after which that was reached first
};

// REQUIRES, or throws std::invalid_argument: an id is allocated only while it
// is not live and freed only while it is; no more than kReplayRangeBytes are
// live at once. O(events * log events).
PreparedTrace Prepare(std::span<const TraceEvent> trace);

// Throws std::invalid_argument about an event.
[[noreturn]] void RefuseEvent(size_t event, const std::string& why);
// The same, of an event that asks for more than is left of `range_bytes`.
[[noreturn]] void RefuseExhausted(size_t event, size_t range_bytes);

}  // namespace jax_bfc

#endif  // JAX_BFC_CORE_TRACE_H_
