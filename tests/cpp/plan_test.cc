// Offline placement: valid by a checker of its own, and as good as it can be
// where that is known.
#include "core/plan.h"

#include <algorithm>
#include <random>
#include <vector>

#include "check.h"
#include "core/arena.h"
#include "core/simulate.h"
#include "source/fake.h"

namespace jax_bfc {
namespace {

// Every pair, one by one. No code of the planner's.
void CheckValid(const std::vector<TraceEvent>& trace, const Packing& packing) {
  struct Block {
    uint32_t id;
    uint64_t bytes;
    size_t begin, end;
  };
  std::vector<Block> blocks;
  for (size_t i = 0; i < trace.size(); ++i) {
    if (trace[i].is_allocate) {
      blocks.push_back({trace[i].id, trace[i].bytes, i, trace.size()});
      continue;
    }
    for (size_t j = blocks.size(); j-- > 0;) {
      if (blocks[j].id != trace[i].id) continue;
      blocks[j].end = i;
      break;
    }
  }
  const std::vector<uint64_t>& offsets = packing.offsets;
  CHECK_EQ(offsets.size(), blocks.size());
  uint64_t high_water = 0;
  for (size_t i = 0; i < blocks.size(); ++i) {
    CHECK_EQ(offsets[i] % 256, 0);
    const uint64_t end = offsets[i] + std::max<uint64_t>(1, blocks[i].bytes);
    high_water = std::max(high_water, (end + 255) / 256 * 256);
    for (size_t j = 0; j < i; ++j) {
      if (blocks[j].end < blocks[i].begin) continue;
      const uint64_t other =
          offsets[j] + std::max<uint64_t>(1, blocks[j].bytes);
      CHECK(end <= offsets[j] || other <= offsets[i]);
    }
  }
  CHECK_EQ(packing.high_water_bytes, high_water);
}

std::vector<TraceEvent> RandomTrace(uint64_t seed, int events, int live_most) {
  std::mt19937_64 random(seed);
  std::vector<TraceEvent> trace;
  std::vector<uint32_t> live;
  while (static_cast<int>(trace.size()) < events) {
    const bool frees = static_cast<int>(live.size()) >= live_most ||
                       (!live.empty() && random() % 2 == 0);
    if (frees) {
      std::swap(live[random() % live.size()], live.back());
      trace.push_back({false, live.back(), 0});
      live.pop_back();
      continue;
    }
    // Ids are used again as soon as they are free.
    uint32_t id = 0;
    while (std::find(live.begin(), live.end(), id) != live.end()) ++id;
    const int power = random() % 24;
    trace.push_back({true, id, random() % (uint64_t{1} << power)});
    live.push_back(id);
  }
  return trace;
}

TEST(LifetimesCountAllocationsOnly) {
  const std::vector<TraceEvent> trace = {
      {true, 5, 100}, {true, 6, 0},  {false, 5, 0}, {true, 5, 300},
      {true, 7, 256}, {false, 7, 0}, {false, 5, 0}};
  const std::vector<Lifetime> lifetimes = LifetimesOf(Prepare(trace));
  CHECK_EQ(lifetimes.size(), 4);
  const uint64_t bytes[] = {256, 256, 512, 256};
  const uint32_t ends[] = {2, 4, 4, 4};
  for (int i = 0; i < 4; ++i) {
    CHECK_EQ(lifetimes[i].bytes, bytes[i]);
    CHECK_EQ(lifetimes[i].end, ends[i]);
  }
  CHECK_EQ(PeakBytes(lifetimes), 1024);
}

TEST(APlanIsValidAndBetweenTheLowerBoundAndTheArena) {
  for (const uint64_t seed : testing::Seeds({1, 2, 3, 4, 5, 6, 7, 8})) {
    const std::vector<TraceEvent> trace =
        RandomTrace(seed, 1500, 2 + static_cast<int>(seed) * 12);
    const TracePlan plan = PlanTrace(trace);
    CheckValid(trace, plan.packing);
    const uint64_t bound = PeakBytes(LifetimesOf(Prepare(trace)));
    CHECK(plan.peak_live_bytes <= bound);
    CHECK(bound <= plan.packing.high_water_bytes);
    CHECK(plan.packing.high_water_bytes <= plan.high_water_bytes);
    CHECK(bound <= plan.limit_bytes);
    CHECK(plan.packing.passes <= kMostPasses);
  }
}

TEST(AHoleThatTheArenaLeavesIsPlannedAway) {
  // The arena puts 2 behind 1; who knows that 0 goes and 2 stays puts 1 above.
  const std::vector<TraceEvent> trace = {
      {true, 0, 1024}, {true, 1, 256}, {false, 0, 0}, {true, 2, 2048}};
  const TracePlan plan = PlanTrace(trace);
  CHECK_EQ(plan.high_water_bytes, 3328);
  CHECK_EQ(plan.packing.high_water_bytes, 2304);
  CheckValid(trace, plan.packing);
}

TEST(WhereTheArenaIsPerfectNoPassIsMade) {
  const std::vector<TraceEvent> trace = {{true, 0, 1024}, {true, 1, 256}};
  const TracePlan plan = PlanTrace(trace);
  CHECK_EQ(plan.packing.passes, 0);
  CHECK_EQ(plan.packing.high_water_bytes, 1280);
}

TEST(LaterPassesBetterTheFirst) {
  int bettered = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const std::vector<TraceEvent> trace = RandomTrace(seed, 1000, 60);
    const std::vector<Lifetime> lifetimes = LifetimesOf(Prepare(trace));
    uint64_t visits = 0;
    for (size_t i = 0; i < lifetimes.size(); ++i) {
      visits += 2 * (lifetimes[i].end - i) - 1;
    }
    const Packing none = {.offsets = {}, .high_water_bytes = kReplayRangeBytes};
    const Packing one = Pack(lifetimes, none, visits);
    const Packing all = Pack(lifetimes, none);
    CHECK_EQ(one.passes, 1);
    CheckValid(trace, one);
    CheckValid(trace, all);
    CHECK(all.high_water_bytes <= one.high_water_bytes);
    if (all.high_water_bytes < one.high_water_bytes) ++bettered;
  }
  CHECK(bettered > 0);
}

TEST(APassThatWouldCostTooMuchIsNotBegun) {
  const std::vector<TraceEvent> trace = {
      {true, 0, 1024}, {true, 1, 256}, {false, 0, 0}, {true, 2, 2048}};
  const PreparedTrace prepared = Prepare(trace);
  const Packing online = {.offsets = ArenaOffsets(prepared),
                          .high_water_bytes = 3328};
  const std::vector<uint64_t> offsets = {0, 1024, 1280};
  CHECK(online.offsets == offsets);
  // 0 sees 1; 1 sees 0 and 2; 2 sees 1; and each itself.
  const std::vector<Lifetime> lifetimes = LifetimesOf(prepared);
  CHECK_EQ(Pack(lifetimes, online, 6).passes, 0);
  CHECK_EQ(Pack(lifetimes, online, 6).high_water_bytes, 3328);
  CHECK_EQ(Pack(lifetimes, online, 7).passes, 1);
  CHECK_EQ(Pack(lifetimes, online, 7).high_water_bytes, 2304);
}

TEST(TheSamePlanEveryTime) {
  const std::vector<TraceEvent> trace = RandomTrace(9, 2000, 60);
  CHECK(PlanTrace(trace).packing.offsets == PlanTrace(trace).packing.offsets);
}

TEST(NothingToPlanNeedsNothing) {
  const TracePlan plan = PlanTrace({});
  CHECK_EQ(plan.allocations, 0);
  CHECK_EQ(plan.packing.high_water_bytes, 0);
  CHECK_EQ(plan.limit_bytes, 0);
}

TEST(TheSmallestLimitServesTheTraceAndOneStepLessDoesNot) {
  for (const uint64_t seed : testing::Seeds({1, 2, 3, 4})) {
    const std::vector<TraceEvent> trace = RandomTrace(seed, 2000, 20);
    const uint64_t limit = PlanTrace(trace).limit_bytes;
    CHECK_EQ(limit % kMaxAlignment, 0);
    const auto serves = [&](uint64_t limit_bytes) {
      FakeSource source({.granularity = kMaxAlignment});
      Arena arena(&source, limit_bytes);
      std::vector<ChunkId> chunks(trace.size());
      for (const TraceEvent& event : trace) {
        if (!event.is_allocate) {
          arena.Free(chunks[event.id]);
          continue;
        }
        chunks[event.id] = arena.Allocate(event.bytes);
        if (chunks[event.id] == kNoChunk) return false;
      }
      return true;
    };
    CHECK(serves(limit));
    CHECK(!serves(limit - kMaxAlignment));
  }
}

TEST(HugeSizesDoNotOverflow) {
  std::vector<TraceEvent> trace;
  for (uint32_t i = 0; i < 2000; ++i) {
    trace.push_back({true, 2 * i, kReplayRangeBytes - 256});
    trace.push_back({true, 2 * i + 1, 256});
    trace.push_back({false, 2 * i, 0});
    trace.push_back({false, 2 * i + 1, 0});
  }
  const TracePlan plan = PlanTrace(trace);
  CHECK_EQ(plan.packing.high_water_bytes, kReplayRangeBytes);
  CHECK_EQ(plan.limit_bytes, kReplayRangeBytes);
}

}  // namespace
}  // namespace jax_bfc
