#include "core/trace.h"

#include <algorithm>
#include <stdexcept>

namespace jax_bfc {

void RefuseEvent(size_t event, const std::string& why) {
  throw std::invalid_argument("replay: event " + std::to_string(event) + " " +
                              why);
}

void RefuseExhausted(size_t event, size_t range_bytes) {
  RefuseEvent(event, "does not fit in " + std::to_string(range_bytes) +
                         " bytes with all that is live");
}

PreparedTrace Prepare(std::span<const TraceEvent> trace) {
  std::vector<uint32_t> ids;
  for (const TraceEvent& event : trace) {
    if (event.is_allocate) ids.push_back(event.id);
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());

  PreparedTrace result;
  result.slots = ids.size();
  result.steps.reserve(trace.size());
  constexpr uint64_t kNotLive = ~uint64_t{0};
  std::vector<uint64_t> live(ids.size(), kNotLive);
  uint64_t live_bytes = 0;
  for (size_t i = 0; i < trace.size(); ++i) {
    const TraceEvent& event = trace[i];
    const auto found = std::lower_bound(ids.begin(), ids.end(), event.id);
    const size_t slot = found - ids.begin();
    const bool known = found != ids.end() && *found == event.id;
    if (event.is_allocate == (known && live[slot] != kNotLive)) {
      RefuseEvent(i, (event.is_allocate ? "allocates id " : "frees id ") +
                         std::to_string(event.id) +
                         (event.is_allocate ? ", which is live"
                                            : ", which is not live"));
    }
    if (event.is_allocate) {
      if (event.bytes > kReplayRangeBytes) {
        RefuseEvent(i, "allocates " + std::to_string(event.bytes) +
                           " bytes; at most " +
                           std::to_string(kReplayRangeBytes));
      }
      live_bytes += event.bytes;
      if (live_bytes > kReplayRangeBytes) RefuseExhausted(i, kReplayRangeBytes);
      live[slot] = event.bytes;
    } else {
      live_bytes -= live[slot];
      live[slot] = kNotLive;
    }
    if (live_bytes > result.peak_live_bytes) {
      result.peak_live_bytes = live_bytes;
      result.peak_step = i;
    }
    result.steps.push_back(
        {event.is_allocate, static_cast<uint32_t>(slot), event.bytes});
  }
  return result;
}

}  // namespace jax_bfc
