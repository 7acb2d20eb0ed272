#include "core/plan.h"

#include <algorithm>
#include <numeric>
#include <tuple>
#include <utility>

#include "core/simulate.h"
#include "core/size_class.h"

namespace jax_bfc {
namespace {

// Places allocations one by one, and finds those that are live together.
class Packer {
 public:
  explicit Packer(std::span<const Lifetime> lifetimes)
      : lifetimes_(lifetimes), offsets_(lifetimes.size()) {
    // What is live before every kStride-th allocation, instead of before all.
    std::vector<uint32_t> live;
    for (uint32_t i = 0; i < lifetimes.size(); ++i) {
      if (i % kStride == 0) {
        std::erase_if(live, [&](uint32_t j) { return lifetimes[j].end <= i; });
        first_live_.push_back(live_.size());
        live_.insert(live_.end(), live.begin(), live.end());
      }
      live.push_back(i);
    }
    first_live_.push_back(live_.size());
  }

  // Places all in this order; false if the line got too long to go on.
  bool Place(std::span<const uint32_t> order) {
    std::fill(offsets_.begin(), offsets_.end(), kNowhere);
    high_water_bytes_ = 0;
    for (const uint32_t i : order) {
      offsets_[i] = LowestFree(i);
      high_water_bytes_ = std::max(high_water_bytes_, end_of(i));
      if (high_water_bytes_ > kMostBytes) return false;
    }
    return true;
  }

  uint64_t end_of(uint32_t i) const {
    return offsets_[i] + lifetimes_[i].bytes;
  }
  uint64_t high_water_bytes() const { return high_water_bytes_; }
  const std::vector<uint64_t>& offsets() const { return offsets_; }

 private:
  static constexpr uint32_t kStride = 64;
  static constexpr uint64_t kNowhere = ~uint64_t{0};
  // Far from overflow, whatever is added to it next.
  static constexpr uint64_t kMostBytes = 16 * uint64_t{kReplayRangeBytes};

  uint64_t LowestFree(uint32_t i) {
    taken_.clear();
    const auto visit = [&](uint32_t j) {
      if (offsets_[j] != kNowhere) taken_.emplace_back(offsets_[j], end_of(j));
    };
    const uint32_t block = i / kStride;
    for (size_t k = first_live_[block]; k < first_live_[block + 1]; ++k) {
      if (lifetimes_[live_[k]].end > i) visit(live_[k]);
    }
    for (uint32_t j = block * kStride; j < i; ++j) {
      if (lifetimes_[j].end > i) visit(j);
    }
    for (uint32_t j = i + 1; j < lifetimes_[i].end; ++j) visit(j);

    std::sort(taken_.begin(), taken_.end());
    uint64_t free = 0;
    for (const auto& [begin, end] : taken_) {
      if (begin >= free + lifetimes_[i].bytes) break;
      free = std::max(free, end);
    }
    return free;
  }

  const std::span<const Lifetime> lifetimes_;
  std::vector<uint64_t> offsets_;
  uint64_t high_water_bytes_ = 0;
  std::vector<size_t> first_live_;  // of each block of kStride, in live_
  std::vector<uint32_t> live_;
  std::vector<std::pair<uint64_t, uint64_t>> taken_;  // scratch of LowestFree
};

// Pairs of allocations that are live together, both ways, and each itself.
uint64_t VisitsPerPass(std::span<const Lifetime> lifetimes) {
  uint64_t visits = 0;
  for (size_t i = 0; i < lifetimes.size(); ++i) {
    visits += 2 * (lifetimes[i].end - i) - 1;
  }
  return visits;
}

}  // namespace

std::vector<Lifetime> LifetimesOf(const PreparedTrace& trace) {
  std::vector<Lifetime> lifetimes;
  std::vector<uint32_t> allocation(trace.slots);  // that holds the slot
  constexpr uint32_t kNeverFreed = 0;
  for (const PreparedTrace::Step& step : trace.steps) {
    const auto now = static_cast<uint32_t>(lifetimes.size());
    if (step.is_allocate) {
      allocation[step.slot] = now;
      lifetimes.push_back({RoundedBytes(step.bytes), kNeverFreed});
    } else {
      lifetimes[allocation[step.slot]].end = now;
    }
  }
  for (Lifetime& lifetime : lifetimes) {
    if (lifetime.end == kNeverFreed) {
      lifetime.end = static_cast<uint32_t>(lifetimes.size());
    }
  }
  return lifetimes;
}

uint64_t PeakBytes(std::span<const Lifetime> lifetimes) {
  std::vector<uint64_t> ending(lifetimes.size() + 1);  // bytes, by end
  uint64_t live = 0, peak = 0;
  for (size_t i = 0; i < lifetimes.size(); ++i) {
    ending[lifetimes[i].end] += lifetimes[i].bytes;
    live += lifetimes[i].bytes - ending[i];
    peak = std::max(peak, live);
  }
  return peak;
}

Packing Pack(std::span<const Lifetime> lifetimes, Packing start,
             uint64_t most_visits) {
  Packing best = std::move(start);
  const uint64_t visits = VisitsPerPass(lifetimes);
  if (lifetimes.empty() || visits > most_visits) return best;
  const int passes =
      static_cast<int>(std::min<uint64_t>(kMostPasses, most_visits / visits));
  const uint64_t bound = PeakBytes(lifetimes);
  const uint64_t well =
      bound + static_cast<uint64_t>(static_cast<double>(bound) * kPackedWell);

  Packer packer(lifetimes);
  std::vector<double> weights(lifetimes.size());
  std::vector<uint32_t> order(lifetimes.size());
  for (size_t i = 0; i < lifetimes.size(); ++i) {
    weights[i] = static_cast<double>(lifetimes[i].bytes);
  }
  std::iota(order.begin(), order.end(), 0);
  const auto first = [&](uint32_t i) {  // the heaviest, then the longest
    return std::tuple(-weights[i], -int64_t{lifetimes[i].end} + i, i);
  };
  int since_better = 0;
  while (best.high_water_bytes > well && best.passes < passes &&
         since_better < kPatience) {
    std::sort(order.begin(), order.end(),
              [&](uint32_t a, uint32_t b) { return first(a) < first(b); });
    if (!packer.Place(order)) break;
    ++best.passes;
    ++since_better;
    if (packer.high_water_bytes() < best.high_water_bytes) {
      best.high_water_bytes = packer.high_water_bytes();
      best.offsets = packer.offsets();
      since_better = 0;
    }
    for (uint32_t i = 0; i < lifetimes.size(); ++i) {
      if (packer.end_of(i) > bound) weights[i] *= 2;
    }
  }
  return best;
}

TracePlan PlanTrace(std::span<const TraceEvent> trace) {
  const PreparedTrace prepared = Prepare(trace);
  const std::vector<Lifetime> lifetimes = LifetimesOf(prepared);
  const ReplayResult online = Replay(trace, kArenaPolicy, 1);
  TracePlan plan;
  plan.allocations = lifetimes.size();
  plan.peak_live_bytes = online.peak_live_bytes;
  plan.high_water_bytes = online.high_water_bytes;
  plan.limit_bytes = SmallestLimit(prepared, online.mapped_bytes);
  plan.packing = Pack(lifetimes, {.offsets = ArenaOffsets(prepared),
                                  .high_water_bytes = online.high_water_bytes});
  return plan;
}

}  // namespace jax_bfc
