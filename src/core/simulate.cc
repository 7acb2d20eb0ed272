#include "core/simulate.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>

#include "core/arena.h"
#include "core/policies/policy.h"

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
class Simulation {
 public:
  using Handle = ChunkId;

  Simulation(size_t granularity, const GrowthPolicy& growth,
             size_t limit_bytes = kReplayRangeBytes)
      : source_(granularity), arena_(&source_, limit_bytes, growth) {}

  bool Allocate(uint64_t bytes, Handle* handle) {
    *handle = arena_.Allocate(bytes);
    return *handle != kNoChunk;
  }
  void Free(Handle handle) { arena_.Free(handle); }
  uint64_t EndOf(Handle handle) const {
    return arena_.chunk(handle).end() - SimulatedSource::kBase;
  }
  uint64_t BytesOf(Handle handle) const { return arena_.chunk(handle).bytes; }
  FreeSpace free_space() const {
    const ArenaStats stats = arena_.stats();
    return {stats.free_bytes, stats.largest_free_bytes};
  }
  uint64_t peak_mapped_bytes() const {
    return arena_.stats().peak_mapped_bytes;
  }

 private:
  SimulatedSource source_;
  Arena arena_;
};

// A reference policy in the same terms.
class Reference {
 public:
  using Handle = Piece;

  Reference(const PolicyEntry& entry, bool whole_range_free)
      : policy_(entry.make(whole_range_free)) {}

  bool Allocate(uint64_t bytes, Handle* handle) {
    const std::optional<Piece> piece = policy_->Allocate(bytes);
    if (piece) *handle = *piece;
    return piece.has_value();
  }
  void Free(Handle handle) { policy_->Free(handle); }
  uint64_t EndOf(Handle) const { return policy_->high_water_bytes(); }
  uint64_t BytesOf(Handle handle) const { return handle.bytes; }
  FreeSpace free_space() const { return policy_->free_space(); }

 private:
  std::unique_ptr<Policy> policy_;
};

// Replays the steps, calling `after` with the number of each; the first that
// does not fit, or the number of them all.
template <typename Allocator, typename After>
size_t Run(Allocator& allocator, const PreparedTrace& trace, After after) {
  std::vector<typename Allocator::Handle> handles(trace.slots);
  for (size_t i = 0; i < trace.steps.size(); ++i) {
    const PreparedTrace::Step& step = trace.steps[i];
    auto& handle = handles[step.slot];
    if (!step.is_allocate) {
      allocator.Free(handle);
    } else if (!allocator.Allocate(step.bytes, &handle)) {
      return i;
    }
    after(i, handle);
  }
  return trace.steps.size();
}

template <typename Allocator, typename After>
void RunAll(Allocator& allocator, const PreparedTrace& trace, After after) {
  const size_t done = Run(allocator, trace, after);
  if (done < trace.steps.size()) RefuseExhausted(done, kReplayRangeBytes);
}

constexpr auto kNothing = [](size_t, const auto&) {};

// What growth by the default policy maps for a line that gets longer.
class SteppedGrowth {
 public:
  void Reach(uint64_t end) {
    if (end <= mapped_bytes_) return;
    step_ = NextStep({}, step_);
    mapped_bytes_ +=
        std::max(RoundUp(end - mapped_bytes_, kMaxAlignment), step_);
  }
  uint64_t mapped_bytes() const { return mapped_bytes_; }

 private:
  size_t step_ = 0;
  uint64_t mapped_bytes_ = 0;
};

// The figures of one replay that are those of its allocator alone.
template <typename Allocator>
void Measure(Allocator& allocator, const PreparedTrace& trace,
             ReplayResult* result) {
  uint64_t requested = 0, in_use = 0;
  SteppedGrowth growth;
  // A handle keeps no sizes of what is free again.
  std::vector<std::pair<uint64_t, uint64_t>> sizes(trace.slots);
  RunAll(allocator, trace, [&](size_t i, const auto& handle) {
    const PreparedTrace::Step& step = trace.steps[i];
    auto& [step_requested, step_in_use] = sizes[step.slot];
    if (!step.is_allocate) {
      requested -= step_requested;
      in_use -= step_in_use;
      return;
    }
    step_requested = step.bytes;
    step_in_use = allocator.BytesOf(handle);
    requested += step_requested;
    in_use += step_in_use;
    result->high_water_bytes =
        std::max(result->high_water_bytes, allocator.EndOf(handle));
    growth.Reach(result->high_water_bytes);
    if (i == trace.peak_step && requested > 0) {
      result->internal_fragmentation_bytes = in_use - requested;
      result->external_fragmentation = allocator.free_space().fragmentation();
    }
  });
  result->mapped_bytes = growth.mapped_bytes();
}

template <typename Allocator>
uint64_t HighWater(Allocator& allocator, const PreparedTrace& trace) {
  uint64_t high_water = 0;
  RunAll(allocator, trace, [&](size_t i, const auto& handle) {
    if (!trace.steps[i].is_allocate) return;
    high_water = std::max(high_water, allocator.EndOf(handle));
  });
  return high_water;
}

template <typename Make>
double NanosecondsPerEvent(const PreparedTrace& trace, int repetitions,
                           Make make) {
  if (trace.steps.empty()) return 0;
  using Clock = std::chrono::steady_clock;
  std::vector<double> times(repetitions);
  for (double& time : times) {
    const std::unique_ptr allocator = make();
    const Clock::time_point start = Clock::now();
    RunAll(*allocator, trace, kNothing);
    const std::chrono::duration<double, std::nano> elapsed =
        Clock::now() - start;
    time = elapsed.count() / static_cast<double>(trace.steps.size());
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void ReplayArena(const PreparedTrace& trace, int repetitions,
                 ReplayResult* result) {
  const GrowthPolicy whole = StepsOf(kReplayRangeBytes);
  const auto premapped = [&] {
    return std::make_unique<Simulation>(kReplayRangeBytes, whole);
  };
  Simulation exact(kQuantum, StepsOf(kQuantum));
  Measure(exact, trace, result);
  result->premapped_high_water_bytes = HighWater(*premapped(), trace);
  Simulation growing(kMaxAlignment, GrowthPolicy{});
  RunAll(growing, trace, kNothing);
  result->mapped_bytes = growing.peak_mapped_bytes();
  result->ns_per_event = NanosecondsPerEvent(trace, repetitions, premapped);
}

void ReplayReference(const PolicyEntry& entry, const PreparedTrace& trace,
                     int repetitions, ReplayResult* result) {
  Reference exact(entry, false), whole(entry, true);
  Measure(exact, trace, result);
  result->premapped_high_water_bytes = HighWater(whole, trace);
  result->ns_per_event = NanosecondsPerEvent(trace, repetitions, [&] {
    return std::make_unique<Reference>(entry, true);
  });
}

}  // namespace

std::vector<std::string_view> PolicyNames() {
  std::vector<std::string_view> names = {kArenaPolicy};
  for (const PolicyEntry& entry : kPolicies) names.push_back(entry.name);
  return names;
}

ReplayResult Replay(std::span<const TraceEvent> trace, std::string_view policy,
                    int repetitions) {
  if (repetitions <= 0) {
    throw std::invalid_argument("replay: repetitions must be positive");
  }
  const PolicyEntry* const entry =
      std::find_if(std::begin(kPolicies), std::end(kPolicies),
                   [&](const PolicyEntry& e) { return e.name == policy; });
  if (policy != kArenaPolicy && entry == std::end(kPolicies)) {
    throw std::invalid_argument("replay: no policy is called '" +
                                std::string(policy) + "'");
  }
  const PreparedTrace prepared = Prepare(trace);
  ReplayResult result;
  result.events = trace.size();
  result.peak_live_bytes = prepared.peak_live_bytes;
  if (policy == kArenaPolicy) {
    ReplayArena(prepared, repetitions, &result);
  } else {
    ReplayReference(*entry, prepared, repetitions, &result);
  }
  if (result.peak_live_bytes > 0) {
    result.ratio = static_cast<double>(result.high_water_bytes) /
                   static_cast<double>(result.peak_live_bytes);
  }
  return result;
}

std::vector<uint64_t> ArenaOffsets(const PreparedTrace& trace) {
  Simulation exact(kQuantum, StepsOf(kQuantum));
  std::vector<uint64_t> offsets;
  RunAll(exact, trace, [&](size_t i, ChunkId id) {
    if (!trace.steps[i].is_allocate) return;
    offsets.push_back(exact.EndOf(id) - exact.BytesOf(id));
  });
  return offsets;
}

uint64_t SmallestLimit(const PreparedTrace& trace, uint64_t mapped_bytes) {
  // In multiples of kMaxAlignment. What growth without a limit maps is known to
  // serve: the same steps fit in it.
  uint64_t serves = RoundUp(mapped_bytes, kMaxAlignment) / kMaxAlignment;
  uint64_t low =
      RoundUp(std::max(trace.peak_live_bytes, uint64_t{1}), kMaxAlignment) /
      kMaxAlignment;
  while (low < serves) {
    const uint64_t middle = low + (serves - low) / 2;
    Simulation limited(kMaxAlignment, GrowthPolicy{}, middle * kMaxAlignment);
    if (Run(limited, trace, kNothing) == trace.steps.size()) {
      serves = middle;
    } else {
      low = middle + 1;
    }
  }
  return serves * kMaxAlignment;
}

}  // namespace jax_bfc
