// How an arena obtains memory and gives it back, by exact address and step.
#include <optional>
#include <string>

#include "check.h"
#include "core/arena.h"
#include "source/fake.h"

namespace jax_bfc {
namespace {

constexpr uintptr_t kBase = FakeSource::kBase;
constexpr size_t kMiB = size_t{1} << 20;

struct Fixture {
  explicit Fixture(size_t limit, const FakeSource::Options& options = {},
                   const GrowthPolicy& growth = {})
      : source(options), arena(&source, limit, growth) {}

  // The address, or 0 where nothing fits.
  uintptr_t Allocate(size_t bytes, size_t alignment = 1) {
    const ChunkId id = arena.Allocate(bytes, alignment);
    const std::optional<std::string> broken = arena.CheckInvariants();
    if (broken) testing::Fail(__FILE__, __LINE__, *broken);
    return id == kNoChunk ? 0 : arena.chunk(id).address;
  }
  void Free(uintptr_t address) { arena.Free(arena.Find(address)); }
  size_t Trim() {
    CHECK_EQ(arena.TrimmableBytes() % source.granularity(), 0);
    const size_t expected = arena.TrimmableBytes();
    const size_t bytes = arena.Trim();
    CHECK_EQ(bytes, expected);
    CHECK_EQ(arena.CheckInvariants().value_or(""), "");
    return bytes;
  }
  size_t mapped() const { return arena.stats().mapped_bytes; }

  FakeSource source;
  Arena arena;
};

constexpr FakeSource::Options kPlain = {.virtual_memory = false};

TEST(StepsDoubleUpToTheLargest) {
  Fixture f(64 * kMiB, {}, {2 * kMiB, 2.0, 8 * kMiB});
  size_t expected = 0;
  for (const size_t step : {2, 4, 8, 8, 8}) {
    CHECK_EQ(f.Allocate(step * kMiB), kBase + expected);
    expected += step * kMiB;
    CHECK_EQ(f.mapped(), expected);
  }
  CHECK_EQ(f.arena.stats().steps, 5);
  CHECK_EQ(f.arena.stats().growths, 5);
  CHECK_EQ(f.source.calls().reserve, 1);
  CHECK_EQ(f.source.calls().map, 5);
}

TEST(AStepIsAtLeastWhatTheRequestNeeds) {
  Fixture f(64 * kMiB);
  CHECK_EQ(f.Allocate(5 * kMiB + 1), kBase);
  CHECK_EQ(f.mapped(), 6 * kMiB);
  // The next step of the policy is unchanged by it.
  CHECK_EQ(f.Allocate(kMiB), kBase + 5 * kMiB + 256);
  CHECK_EQ(f.mapped(), 10 * kMiB);
}

TEST(GrowthCountsTheFreeChunkRightBelow) {
  Fixture f(64 * kMiB, {}, {2 * kMiB, 1.0, 2 * kMiB});
  CHECK_EQ(f.Allocate(kMiB), kBase);
  CHECK_EQ(f.Allocate(3 * kMiB), kBase + kMiB);
  CHECK_EQ(f.mapped(), 4 * kMiB);
}

TEST(TheLimitIsReachedAndNeverPassed) {
  Fixture f(7 * kMiB, {}, {2 * kMiB, 2.0, 8 * kMiB});
  CHECK_EQ(f.Allocate(2 * kMiB), kBase);
  CHECK_EQ(f.Allocate(2 * kMiB), kBase + 2 * kMiB);
  // 7 MiB are no multiple of the granularity: 6 can be mapped.
  CHECK_EQ(f.mapped(), 6 * kMiB);
  CHECK_EQ(f.Allocate(2 * kMiB), kBase + 4 * kMiB);
  CHECK_EQ(f.Allocate(1), 0);
  CHECK_EQ(f.mapped(), 6 * kMiB);
  f.arena.set_limit_bytes(8 * kMiB);
  CHECK_EQ(f.Allocate(1), kBase + 6 * kMiB);
  CHECK_EQ(f.mapped(), 8 * kMiB);
}

TEST(NothingIsLostByAFailure) {
  Fixture f(4 * kMiB);
  CHECK_EQ(f.Allocate(kMiB), kBase);
  const ArenaStats before = f.arena.stats();
  CHECK_EQ(f.Allocate(8 * kMiB), 0);
  CHECK_EQ(f.Allocate(4 * kMiB), 0);
  CHECK(f.arena.stats() == before);
  CHECK_EQ(f.Allocate(3 * kMiB), kBase + kMiB);
}

TEST(ARefusedStepIsHalvedDownToTheNeed) {
  Fixture f(256 * kMiB, {}, {64 * kMiB, 1.0, 64 * kMiB});
  f.source.RefuseNext(3);
  CHECK_EQ(f.Allocate(kMiB), kBase);
  CHECK_EQ(f.mapped(), 8 * kMiB);  // 64, 32, 16 refused
  CHECK_EQ(f.source.calls().map, 4);
  f.source.set_capacity(8 * kMiB + 20 * kMiB);
  CHECK_EQ(f.Allocate(18 * kMiB), kBase + kMiB);
  // 11 MiB needed, in whole steps 12: 64, 32 refused, 16 granted.
  CHECK_EQ(f.mapped(), 24 * kMiB);
}

TEST(ASourceThatAlwaysRefusesEndsTheLoop) {
  for (const bool virtual_memory : {true, false}) {
    Fixture f(size_t{1} << 40, {.virtual_memory = virtual_memory},
              {size_t{1} << 36, 2.0, size_t{1} << 38});
    f.source.RefuseAlways(true);
    CHECK_EQ(f.Allocate(1), 0);
    // 64 GiB down to 2 MiB.
    CHECK_EQ(f.source.calls().refused, 16);
    CHECK_EQ(f.mapped(), 0);
    f.source.RefuseAlways(false);
    CHECK_EQ(f.Allocate(1), kBase);
  }
}

TEST(ARefusedMapTakesNoMoreAddresses) {
  Fixture f(64 * kMiB);
  f.source.RefuseAlways(true);
  for (int i = 0; i < 10; ++i) {
    CHECK_EQ(f.Allocate(kMiB), 0);
    f.source.ResetFuse();
  }
  CHECK_EQ(f.arena.stats().reserved_bytes, 64 * kMiB);
  CHECK_EQ(f.source.calls().reserve, 1);
}

TEST(ARefusedReservationIsHalved) {
  Fixture f(64 * kMiB);
  f.source.RefuseNextReserve(2);
  CHECK_EQ(f.Allocate(kMiB), kBase);
  CHECK_EQ(f.arena.stats().reserved_bytes, 16 * kMiB);
  // What does not fit there gets a region of its own.
  CHECK_EQ(f.Allocate(20 * kMiB), kBase + 16 * kMiB);
  CHECK_EQ(f.arena.stats().regions, 2);
}

TEST(AStepIsClippedToWhatTheSourceHasLeft) {
  Fixture f(64 * kMiB, {.tells_available = true}, {16 * kMiB, 1.0, 16 * kMiB});
  f.source.set_capacity(6 * kMiB);
  CHECK_EQ(f.Allocate(kMiB), kBase);
  CHECK_EQ(f.mapped(), 6 * kMiB);
  CHECK_EQ(f.Allocate(6 * kMiB), 0);
  CHECK_EQ(f.source.calls().refused, 0);
}

TEST(TrimGivesBackWhatIsWhollyFreeAndItIsMappedAgain) {
  Fixture f(64 * kMiB, {}, {2 * kMiB, 1.0, 2 * kMiB});
  for (int i = 0; i < 4; ++i) f.Allocate(2 * kMiB);
  f.Free(kBase + 2 * kMiB);
  f.Free(kBase + 4 * kMiB);
  CHECK_EQ(f.Trim(), 4 * kMiB);
  CHECK_EQ(f.mapped(), 4 * kMiB);
  CHECK_EQ(f.source.mapped_bytes(), 4 * kMiB);
  CHECK_EQ(f.arena.stats().trims, 2);
  CHECK_EQ(f.arena.stats().reserved_bytes, 64 * kMiB);
  // Unmapped chunks join: one of 4 MiB, and it comes before new addresses.
  CHECK_EQ(f.arena.chunk(f.arena.Find(kBase + 2 * kMiB)).bytes, 4 * kMiB);
  CHECK_EQ(f.Allocate(3 * kMiB), kBase + 2 * kMiB);
  CHECK_EQ(f.mapped(), 8 * kMiB);
  CHECK_EQ(f.arena.stats().growths, 5);
}

TEST(AStepInUseInPartIsKept) {
  Fixture f(64 * kMiB, {}, {4 * kMiB, 1.0, 4 * kMiB});
  CHECK_EQ(f.Allocate(256), kBase);
  CHECK_EQ(f.Allocate(5 * kMiB), kBase + 256);
  CHECK_EQ(f.Trim(), 0);
  f.Free(kBase + 256);
  CHECK_EQ(f.Trim(), 4 * kMiB);
  CHECK_EQ(f.mapped(), 4 * kMiB);
  CHECK_EQ(f.arena.stats().largest_free_bytes, 4 * kMiB - 256);
}

TEST(AHoleIsFilledWithBothFreeNeighboursCounted) {
  Fixture f(12 * kMiB, {}, {4 * kMiB, 1.0, 4 * kMiB});
  for (int i = 0; i < 6; ++i) f.Allocate(2 * kMiB);
  f.Free(kBase + 4 * kMiB);
  f.Free(kBase + 6 * kMiB);
  CHECK_EQ(f.Trim(), 4 * kMiB);
  f.Free(kBase + 2 * kMiB);
  f.Free(kBase + 8 * kMiB);
  // 2 MiB free, 4 unmapped, 2 free.
  CHECK_EQ(f.Allocate(8 * kMiB), kBase + 2 * kMiB);
  CHECK_EQ(f.arena.stats().free_bytes, 0);
}

TEST(WhatTheSourceDoesNotTakeBackStaysMapped) {
  Fixture f(64 * kMiB, {}, {2 * kMiB, 1.0, 2 * kMiB});
  f.Allocate(2 * kMiB);
  f.Free(kBase);
  f.source.RefuseNextUnmap(1);
  CHECK_EQ(f.arena.Trim(), 0);
  CHECK_EQ(f.mapped(), 2 * kMiB);
  CHECK_EQ(f.Allocate(2 * kMiB), kBase);
  CHECK_EQ(f.source.calls().map, 1);
}

TEST(PlainRegionsNeverJoin) {
  Fixture f(64 * kMiB, kPlain, {2 * kMiB, 1.0, 2 * kMiB});
  CHECK_EQ(f.Allocate(2 * kMiB), kBase);
  CHECK_EQ(f.Allocate(2 * kMiB), kBase + 2 * kMiB);
  f.Free(kBase);
  f.Free(kBase + 2 * kMiB);
  const ArenaStats stats = f.arena.stats();
  CHECK_EQ(stats.regions, 2);
  CHECK_EQ(stats.free_chunks, 2);
  CHECK_EQ(stats.largest_free_bytes, 2 * kMiB);
  // 4 MiB side by side are free, but not in one piece.
  CHECK_EQ(f.Allocate(4 * kMiB), kBase + 4 * kMiB);
}

TEST(TrimReleasesPlainRegions) {
  Fixture f(64 * kMiB, kPlain, {2 * kMiB, 1.0, 2 * kMiB});
  for (int i = 0; i < 3; ++i) f.Allocate(2 * kMiB);
  f.Free(kBase + 2 * kMiB);
  CHECK_EQ(f.Trim(), 2 * kMiB);
  CHECK_EQ(f.arena.stats().regions, 2);
  CHECK_EQ(f.arena.stats().reserved_bytes, 4 * kMiB);
  CHECK_EQ(f.source.calls().release, 1);
  CHECK_EQ(f.source.calls().map, 0);
  CHECK_EQ(f.arena.Find(kBase + 2 * kMiB), kNoChunk);
  CHECK_EQ(f.Allocate(2 * kMiB), kBase + 2 * kMiB);
}

TEST(ALongChainOfStepsOfEqualSizeStaysConsistent) {
  Fixture f(64 * kMiB, {.granularity = 4096}, {4096, 1.0, 4096});
  for (int i = 0; i < 500; ++i) {
    CHECK_EQ(f.arena.chunk(f.arena.Allocate(4096)).address, kBase + 4096 * i);
  }
  for (int i = 1; i < 500; i += 2) f.Free(kBase + 4096 * i);
  CHECK_EQ(f.Trim(), 250 * 4096);
  for (int i = 0; i < 500; i += 2) f.Free(kBase + 4096 * i);
  CHECK_EQ(f.Trim(), 250 * 4096);
  CHECK_EQ(f.mapped(), 0);
  CHECK_EQ(f.arena.chunk(f.arena.Find(kBase)).bytes, 64 * kMiB);
}

TEST(TheNextAttemptIsAlwaysSmaller) {
  for (const size_t needed : {1, 3, 64}) {
    std::optional<size_t> bytes = 4096 * 1000;
    for (int attempts = 0; bytes; ++attempts) {
      CHECK(attempts < 12);
      CHECK(*bytes >= needed * 4096 && *bytes % 4096 == 0);
      const auto next = NextAttempt(needed * 4096, *bytes, 4096);
      CHECK(!next || *next < *bytes);
      bytes = next;
    }
  }
}

TEST(StepsNeverShrinkAndNeverPassTheLargest) {
  for (const double factor : {1.0, 1.5, 2.0, 1e300}) {
    const GrowthPolicy policy = {2 * kMiB, factor, 64 * kMiB};
    size_t step = 0;
    for (int i = 0; i < 100; ++i) {
      const size_t next = NextStep(policy, step);
      CHECK(next >= step && next <= 64 * kMiB);
      step = next;
    }
    CHECK_EQ(step, factor == 1.0 ? 2 * kMiB : 64 * kMiB);
  }
}

}  // namespace
}  // namespace jax_bfc
