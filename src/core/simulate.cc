#include "core/simulate.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/arena.h"

namespace jax_bfc {
namespace {

// Addresses without memory, always granted: one range, at kBase.
class SimulatedSource : public MemorySource {
 public:
  static constexpr uintptr_t kBase = kReplayRangeBytes;

  explicit SimulatedSource(size_t granularity) : granularity_(granularity) {}

  const char* name() const override { return "simulated"; }
  size_t granularity() const override { return granularity_; }
  bool has_virtual_memory() const override { return true; }
  uintptr_t Reserve(size_t) override {
    if (reserved_) return 0;
    reserved_ = true;
    return kBase;
  }
  void Release(uintptr_t, size_t) override { reserved_ = false; }
  bool Map(uintptr_t, size_t) override { return true; }
  bool Unmap(uintptr_t, size_t) override { return true; }

 private:
  const size_t granularity_;
  bool reserved_ = false;
};

// Steps of one size, or of what a request needs where that is more.
constexpr GrowthPolicy StepsOf(size_t bytes) {
  return {
      .initial_bytes = bytes, .growth_factor = 1, .max_growth_bytes = bytes};
}

// A source and an arena on it, for one replay.
struct Simulation {
  explicit Simulation(size_t granularity, const GrowthPolicy& growth = {})
      : source(granularity), arena(&source, kReplayRangeBytes, growth) {}

  SimulatedSource source;
  Arena arena;
};

// An event with its id replaced by an index into an array.
struct Step {
  bool is_allocate;
  uint32_t slot;
  uint64_t bytes;
};

struct Steps {
  std::vector<Step> steps;
  size_t slots = 0;
};

[[noreturn]] void Refuse(size_t event, const std::string& why) {
  throw std::invalid_argument("replay: event " + std::to_string(event) + " " +
                              why);
}

// The trace, checked, with dense slots for its ids.
Steps Prepare(std::span<const TraceEvent> trace) {
  std::vector<uint32_t> ids;
  for (const TraceEvent& event : trace) {
    if (event.is_allocate) ids.push_back(event.id);
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());

  Steps result;
  result.slots = ids.size();
  result.steps.reserve(trace.size());
  std::vector<bool> live(ids.size());
  for (size_t i = 0; i < trace.size(); ++i) {
    const TraceEvent& event = trace[i];
    const auto found = std::lower_bound(ids.begin(), ids.end(), event.id);
    const size_t slot = found - ids.begin();
    const bool known = found != ids.end() && *found == event.id;
    if (event.is_allocate == (known && live[slot])) {
      Refuse(i, (event.is_allocate ? "allocates id " : "frees id ") +
                    std::to_string(event.id) +
                    (event.is_allocate ? ", which is live"
                                       : ", which is not live"));
    }
    if (event.is_allocate && event.bytes > kReplayRangeBytes) {
      Refuse(i, "allocates " + std::to_string(event.bytes) +
                    " bytes; at most " + std::to_string(kReplayRangeBytes));
    }
    live[slot] = event.is_allocate;
    result.steps.push_back(
        {event.is_allocate, static_cast<uint32_t>(slot), event.bytes});
  }
  return result;
}

// Replays all steps, calling `after` with the chunk of each allocation.
template <typename After>
void ReplayOn(Arena& arena, const Steps& trace, After after) {
  std::vector<ChunkId> chunks(trace.slots, kNoChunk);
  for (size_t i = 0; i < trace.steps.size(); ++i) {
    const Step& step = trace.steps[i];
    if (!step.is_allocate) {
      arena.Free(chunks[step.slot]);
      continue;
    }
    const ChunkId id = arena.Allocate(step.bytes);
    if (id == kNoChunk) {
      Refuse(i, "does not fit in " + std::to_string(kReplayRangeBytes) +
                    " bytes with all that is live");
    }
    chunks[step.slot] = id;
    after(arena.chunk(id));
  }
}

// How high the chunks in use reach, at most.
class HighWater {
 public:
  void operator()(const Chunk& chunk) {
    bytes_ = std::max(bytes_, chunk.end() - SimulatedSource::kBase);
  }
  uint64_t bytes() const { return bytes_; }

 private:
  uint64_t bytes_ = 0;
};

double NanosecondsPerEvent(const Steps& trace) {
  if (trace.steps.empty()) return 0;
  using Clock = std::chrono::steady_clock;
  Simulation premapped(kReplayRangeBytes, StepsOf(kReplayRangeBytes));
  const Clock::time_point start = Clock::now();
  ReplayOn(premapped.arena, trace, [](const Chunk&) {});
  const std::chrono::duration<double, std::nano> elapsed = Clock::now() - start;
  return elapsed.count() / static_cast<double>(trace.steps.size());
}

}  // namespace

ReplayResult Replay(std::span<const TraceEvent> trace, int repetitions) {
  if (repetitions <= 0) {
    throw std::invalid_argument("replay: repetitions must be positive");
  }
  const Steps steps = Prepare(trace);
  ReplayResult result;
  result.events = trace.size();
  HighWater exact_reach, premapped_reach;

  Simulation exact(kQuantum, StepsOf(kQuantum));
  ReplayOn(exact.arena, steps, [&](const Chunk& chunk) {
    exact_reach(chunk);
    const ArenaStats stats = exact.arena.stats();
    if (stats.requested_bytes <= result.peak_live_bytes) return;
    result.peak_live_bytes = stats.requested_bytes;
    result.internal_fragmentation_bytes =
        stats.bytes_in_use - stats.requested_bytes;
  });
  result.high_water_bytes = exact_reach.bytes();
  if (result.peak_live_bytes > 0) {
    result.ratio = static_cast<double>(result.high_water_bytes) /
                   static_cast<double>(result.peak_live_bytes);
  }

  Simulation premapped(kReplayRangeBytes, StepsOf(kReplayRangeBytes));
  ReplayOn(premapped.arena, steps,
           [&](const Chunk& chunk) { premapped_reach(chunk); });
  result.premapped_high_water_bytes = premapped_reach.bytes();

  Simulation growing(kMaxAlignment);
  ReplayOn(growing.arena, steps, [](const Chunk&) {});
  result.mapped_bytes = growing.arena.stats().peak_mapped_bytes;

  std::vector<double> times(repetitions);
  for (double& time : times) time = NanosecondsPerEvent(steps);
  std::sort(times.begin(), times.end());
  result.ns_per_event = times[times.size() / 2];
  return result;
}

}  // namespace jax_bfc
