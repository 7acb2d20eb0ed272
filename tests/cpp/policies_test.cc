// Each reference policy against its definition, by addresses worked out by hand.
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "core/policies/free_line.h"
#include "core/policies/policy.h"
#include "core/policies/xla_bfc.h"
#include "core/simulate.h"
#include "core/size_class.h"

namespace jax_bfc {
namespace {

constexpr uint64_t kKiB = 1 << 10;
constexpr uint64_t kMiB = 1 << 20;

// Pieces by the number of their allocation, from 0.
class Bench {
 public:
  explicit Bench(std::unique_ptr<Policy> policy) : policy_(std::move(policy)) {}

  Piece Take(uint64_t bytes) {
    pieces_.push_back(policy_->Allocate(bytes).value());
    return pieces_.back();
  }
  uint64_t AddressOf(uint64_t bytes) { return Take(bytes).address; }
  void Free(size_t allocation) { policy_->Free(pieces_[allocation]); }
  const Policy& policy() const { return *policy_; }

 private:
  std::unique_ptr<Policy> policy_;
  std::vector<Piece> pieces_;
};

// ---------------------------------------------------------------------------
// XLA.

TEST(XlaSplitsAChunkOfAtLeastTwiceTheRequest) {
  Bench bench(MakeXlaBfc(false));
  bench.Take(1024);  // 0: [0, 1024)
  bench.Take(256);   // 1
  bench.Free(0);
  CHECK_EQ(bench.AddressOf(512), 0);  // 2: 1024 is twice that
  CHECK_EQ(bench.AddressOf(300), 512);
  CHECK_EQ(bench.AddressOf(256), 1280);
}

TEST(XlaHandsOutAChunkOfLessThanTwiceTheRequestWhole) {
  Bench bench(MakeXlaBfc(false));
  bench.Take(1024);
  bench.Take(256);
  bench.Free(0);
  CHECK(bench.Take(600) == Piece{0, 1024});  // 768 by rounding
  CHECK_EQ(bench.policy().free_space().bytes, 0);
  CHECK_EQ(bench.AddressOf(256), 1280);
}

TEST(XlaSplitsWhere128MiBWouldBeLeftOver) {
  Bench bench(MakeXlaBfc(false));
  bench.Take(384 * kMiB);
  bench.Take(256);
  bench.Free(0);
  CHECK(bench.Take(256 * kMiB) == (Piece{0, 256 * kMiB}));
  bench.Free(2);
  CHECK(bench.Take(256 * kMiB + 256) == (Piece{0, 384 * kMiB}));
}

TEST(XlaTakesTheSmallestChunkThatFitsThenTheLowest) {
  Bench bench(MakeXlaBfc(false));
  for (const uint64_t bytes : {2048, 256, 1280, 256, 1280, 256}) {
    bench.Take(bytes);
  }
  for (const size_t allocation : {0, 2, 4}) bench.Free(allocation);
  CHECK_EQ(bench.AddressOf(1100), 2304);  // 2's, not 0's and not 4's
  CHECK_EQ(bench.AddressOf(1100), 3840);  // 4's
  CHECK_EQ(bench.AddressOf(1100), 0);
}

TEST(WhatXlaFreedAtTheEndJoinsTheRestOnlyIfThatIsAChunk) {
  // Holes of 1024 and, at the end, of 512: the request is for 512.
  for (const bool whole : {false, true}) {
    Bench bench(MakeXlaBfc(whole));
    for (const uint64_t bytes : {1024, 256, 512}) bench.Take(bytes);
    bench.Free(0);
    bench.Free(2);
    CHECK_EQ(bench.AddressOf(512), whole ? 0 : 1280);
    CHECK_EQ(bench.policy().high_water_bytes(), 1792);
  }
}

// ---------------------------------------------------------------------------
// Buddies.

TEST(BuddiesRoundToPowersOfTwoAndKeepTheLowerHalf) {
  Bench bench(MakeBuddy(false));
  CHECK(bench.Take(600) == Piece{0, 1024});
  CHECK(bench.Take(0) == Piece{1024, 256});
  CHECK(bench.Take(512) == Piece{1536, 512});
  CHECK(bench.Take(256) == Piece{1280, 256});
  CHECK(bench.Take(257) == Piece{2048, 512});
  CHECK_EQ(bench.policy().high_water_bytes(), 2560);
}

TEST(OnlyBuddiesJoin) {
  Bench bench(MakeBuddy(false));
  for (int i = 0; i < 4; ++i) CHECK_EQ(bench.AddressOf(256), i * 256);
  bench.Free(1);
  bench.Free(2);  // neighbours, not buddies
  CHECK_EQ(bench.AddressOf(512), 1024);
  bench.Free(0);  // 0 and 1 join
  CHECK_EQ(bench.AddressOf(512), 0);
}

TEST(BuddiesCountWhatIsFreeBelowTheHighWater) {
  Bench bench(MakeBuddy(false));
  bench.Take(256);
  bench.Take(1024);  // [1024, 2048)
  FreeSpace space = bench.policy().free_space();
  CHECK_EQ(space.bytes, 768);
  CHECK_EQ(space.largest_bytes, 512);
  bench.Free(0);
  bench.Free(1);
  space = bench.policy().free_space();
  CHECK_EQ(space.bytes, 2048);
  CHECK_EQ(space.fragmentation(), 0.0);
}

// ---------------------------------------------------------------------------
// Slabs.

TEST(SlabsCutARunIntoSlotsOfOneClass) {
  Bench bench(MakeSlab(false));
  CHECK(bench.Take(1100) == Piece{0, 1280});
  CHECK(bench.Take(1280) == Piece{1280, 1280});
  CHECK(bench.Take(256) == (Piece{64 * kKiB, 256}));
  CHECK(bench.Take(0) == (Piece{64 * kKiB + 256, 256}));
  bench.Free(0);
  CHECK_EQ(bench.AddressOf(1025), 0);
  CHECK_EQ(bench.policy().high_water_bytes(), 128 * kKiB);
}

TEST(AnEmptySlabIsGivenBack) {
  Bench bench(MakeSlab(false));
  bench.Take(256);
  bench.Take(1100);  // a slab at 64 KiB
  bench.Free(0);
  CHECK_EQ(bench.AddressOf(60 * kKiB), 0);
}

TEST(AFullSlabIsFollowedByAnotherAndUsedAgainFirst) {
  Bench bench(MakeSlab(false));
  for (uint64_t i = 0; i < 4; ++i) {
    CHECK_EQ(bench.AddressOf(16 * kKiB), i * 16 * kKiB);
  }
  CHECK_EQ(bench.AddressOf(16 * kKiB), 64 * kKiB);
  bench.Free(2);
  CHECK_EQ(bench.AddressOf(16 * kKiB), 32 * kKiB);
}

TEST(LargeRequestsTakeRunsOfTheirClassByFirstFit) {
  Bench bench(MakeSlab(false));
  CHECK(bench.Take(kMiB + 1) == (Piece{0, kMiB + 256 * kKiB}));
  CHECK(bench.Take(100 * kKiB) == (Piece{1280 * kKiB, 112 * kKiB}));
  bench.Free(0);
  CHECK_EQ(bench.AddressOf(17 * kKiB), 0);
  CHECK_EQ(bench.AddressOf(kMiB), 20 * kKiB);
}

// ---------------------------------------------------------------------------
// First fit.

TEST(FirstFitTakesTheLowestHoleThatFits) {
  Bench bench(MakeFirstFit(false));
  for (const uint64_t bytes : {512, 256, 4096, 256, 1024, 256}) {
    bench.Take(bytes);
  }
  for (const size_t allocation : {0, 2, 4}) bench.Free(allocation);
  CHECK_EQ(bench.AddressOf(1024), 768);   // 2's, though 4's fits exactly
  CHECK_EQ(bench.AddressOf(300), 0);      // 0's
  CHECK_EQ(bench.AddressOf(3072), 1792);  // what 2's has left
  CHECK_EQ(bench.AddressOf(512), 5120);   // 4's
}

TEST(FirstFitJoinsNeighboursOnBothSides) {
  Bench bench(MakeFirstFit(false));
  for (int i = 0; i < 4; ++i) bench.Take(256);
  bench.Free(0);
  bench.Free(2);
  CHECK_EQ(bench.policy().free_space().fragmentation(), 0.5);
  bench.Free(1);
  CHECK_EQ(bench.policy().free_space().fragmentation(), 0.0);
  CHECK_EQ(bench.AddressOf(768), 0);
}

TEST(TheLineGrowsByNoMoreThanIsMissing) {
  Bench bench(MakeFirstFit(false));
  bench.Take(256);
  bench.Take(512);
  bench.Free(1);
  CHECK_EQ(bench.AddressOf(1024), 256);
  CHECK_EQ(bench.policy().high_water_bytes(), 1280);
}

// ---------------------------------------------------------------------------
// All.

std::vector<TraceEvent> RandomTrace(uint64_t seed, int events) {
  std::mt19937_64 random(seed);
  std::vector<TraceEvent> trace;
  std::vector<uint32_t> live;
  for (uint32_t id = 0; static_cast<int>(trace.size()) < events; ++id) {
    const int power = random() % 22;
    trace.push_back({true, id, random() % (uint64_t{1} << power)});
    live.push_back(id);
    while (!live.empty() && random() % 100 < 48) {
      std::swap(live[random() % live.size()], live.back());
      trace.push_back({false, live.back(), 0});
      live.pop_back();
    }
  }
  return trace;
}

struct AlwaysSplit : XlaBins {
  static constexpr bool Splits(uint64_t, uint64_t) { return true; }
};

TEST(XlaBinsThatAlwaysSplitPlaceAsTheArena) {
  for (const uint64_t seed : testing::Seeds({1, 2, 3})) {
    const std::vector<TraceEvent> trace = RandomTrace(seed, 3000);
    const std::vector<uint64_t> expected = ArenaOffsets(Prepare(trace));
    FreeLine<AlwaysSplit> line(false);
    std::map<uint32_t, Piece> pieces;
    size_t allocations = 0;
    for (const TraceEvent& event : trace) {
      if (!event.is_allocate) {
        line.Free(pieces.at(event.id));
        continue;
      }
      pieces[event.id] = line.Allocate(event.bytes).value();
      CHECK_EQ(pieces[event.id].address, expected[allocations++]);
    }
  }
}

TEST(NoPolicyGivesAByteTwice) {
  for (const PolicyEntry& entry : kPolicies) {
    for (const uint64_t seed : testing::Seeds({1, 2, 3})) {
      for (const bool whole : {false, true}) {
        const std::unique_ptr<Policy> policy = entry.make(whole);
        std::map<uint32_t, Piece> pieces;
        std::map<uint64_t, uint64_t> live;  // address to end
        uint64_t high_water = 0;
        for (const TraceEvent& event : RandomTrace(seed, 3000)) {
          if (event.is_allocate) {
            const Piece piece = policy->Allocate(event.bytes).value();
            CHECK(piece.bytes >= event.bytes && piece.bytes >= 256);
            CHECK_EQ(piece.address % 256, 0);
            const auto next = live.lower_bound(piece.address);
            CHECK(next == live.end() || next->first >= piece.end());
            CHECK(next == live.begin() ||
                  std::prev(next)->second <= piece.address);
            live.emplace(piece.address, piece.end());
            pieces.insert({event.id, piece});
            high_water = std::max(high_water, piece.end());
          } else {
            live.erase(pieces.at(event.id).address);
            policy->Free(pieces.at(event.id));
            pieces.erase(event.id);
          }
          CHECK(policy->high_water_bytes() >= high_water);
        }
        for (const auto& [id, piece] : pieces) policy->Free(piece);
        // Then all is one hole again.
        const FreeSpace space = policy->free_space();
        CHECK_EQ(space.bytes, policy->high_water_bytes());
        CHECK(std::string(entry.name) == "buddy" ||
              space.largest_bytes == space.bytes);
      }
    }
  }
}

TEST(TheLineEndsInARefusal) {
  for (const PolicyEntry& entry : kPolicies) {
    const std::unique_ptr<Policy> policy = entry.make(false);
    const uint64_t largest = kReplayRangeBytes;
    uint64_t granted = 0;
    while (policy->Allocate(largest)) granted += largest;
    CHECK_EQ(granted, kPolicyRangeBytes);
    CHECK(!policy->Allocate(1));
  }
}

TEST(EveryPolicyIsReplayedByName) {
  const std::vector<TraceEvent> trace = {{true, 0, 1000},
                                         {true, 1, 100},
                                         {false, 0, 0},
                                         {true, 2, 700},
                                         {true, 3, 2000}};
  // 2 goes to [0, 768) of [0, 1024), which XLA does not split. Slabs are of
  // 1024, then 768, of 256 and of 2048.
  const std::map<std::string, std::pair<uint64_t, uint64_t>> expected = {
      {"bfc", {3328, 768 + 256 + 2048 - 2800}},
      {"xla", {3328, 1024 + 256 + 2048 - 2800}},
      {"buddy", {4096, 1024 + 256 + 2048 - 2800}},
      {"slab", {3 * 64 * kKiB, 768 + 256 + 2048 - 2800}},
      {"first_fit", {3328, 768 + 256 + 2048 - 2800}}};
  CHECK_EQ(PolicyNames().size(), expected.size());
  for (const std::string_view name : PolicyNames()) {
    const ReplayResult result = Replay(trace, name, 1);
    const auto& [high_water, internal] = expected.at(std::string(name));
    CHECK_EQ(result.high_water_bytes, high_water);
    CHECK_EQ(result.internal_fragmentation_bytes, internal);
    CHECK_EQ(result.premapped_high_water_bytes, result.high_water_bytes);
    CHECK_EQ(result.mapped_bytes, 2 * kMiB);
    CHECK_EQ(result.peak_live_bytes, 2800);
  }
  CHECK_EQ(Replay(trace, "bfc", 1).external_fragmentation, 0.0);
  CHECK_EQ(Replay(trace, "xla", 1).external_fragmentation, 0.0);
  // [768, 1024) is free, and of buddies [1280, 1536) and [1536, 2048).
  CHECK_EQ(Replay(trace, "buddy", 1).external_fragmentation, 1 - 512.0 / 768);
}

TEST(ALongerLineIsMappedByStepsOfTheDefaultPolicy) {
  // 2 MiB, 4 MiB, and the 97 MiB that are missing, which is more than 8 MiB.
  const std::vector<TraceEvent> trace = {
      {true, 0, kMiB}, {true, 1, 2 * kMiB}, {true, 2, 100 * kMiB}};
  for (const std::string_view name : {"bfc", "xla", "first_fit"}) {
    CHECK_EQ(Replay(trace, name, 1).mapped_bytes, 104 * kMiB);
  }
  // 109 MiB are missing, since the class of 100 MiB is 112 MiB.
  CHECK_EQ(Replay(trace, "slab", 1).mapped_bytes, 116 * kMiB);
  // [0, 1), [2, 4) and [128, 256): 2, 4, and the 250 that are missing.
  CHECK_EQ(Replay(trace, "buddy", 1).mapped_bytes, 256 * kMiB);
}

TEST(AnUnknownPolicyIsRefused) {
  std::string message;
  try {
    Replay({}, "worst_fit");
  } catch (const std::invalid_argument& refused) {
    message = refused.what();
  }
  CHECK_EQ(message, "replay: no policy is called 'worst_fit'");
}

}  // namespace
}  // namespace jax_bfc
