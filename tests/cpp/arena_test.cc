// Placement, freeing and counters of an arena, by exact address.
#include "core/arena.h"

#include <optional>
#include <string>
#include <vector>

#include "check.h"
#include "source/fake.h"

namespace jax_bfc {
namespace {

constexpr uintptr_t kBase = FakeSource::kBase;
constexpr size_t kKiB = 1024, kMiB = 1024 * kKiB;

// An arena of 64 MiB that maps 2 MiB at first.
struct Fixture {
  uintptr_t Allocate(size_t bytes, size_t alignment = 1) {
    const ChunkId id = arena.Allocate(bytes, alignment);
    return id == kNoChunk ? 0 : arena.chunk(id).address;
  }
  void Free(uintptr_t address) {
    arena.Free(arena.Find(address));
    CheckInvariants();
  }
  void CheckInvariants() {
    const std::optional<std::string> broken = arena.CheckInvariants();
    if (broken) testing::Fail(__FILE__, __LINE__, *broken);
  }
  size_t BytesAt(uintptr_t address) {
    return arena.chunk(arena.Find(address)).bytes;
  }

  FakeSource source;
  Arena arena{&source, 64 * kMiB};
};

TEST(AnUntouchedArenaHasAskedForNothing) {
  Fixture f;
  CHECK_EQ(f.source.calls() == FakeSource::Calls(), true);
  CHECK_EQ(f.arena.stats() == ArenaStats(), true);
  CHECK_EQ(f.arena.Find(kBase), kNoChunk);
  CHECK_EQ(f.arena.Trim(), 0);
  CHECK_EQ(f.arena.TryAllocate(1), kNoChunk);
  f.CheckInvariants();
}

TEST(AChunkIsSplitAndItsRemainderStaysFree) {
  Fixture f;
  CHECK_EQ(f.Allocate(1000), kBase);
  CHECK_EQ(f.BytesAt(kBase), 1024);
  CHECK_EQ(f.BytesAt(kBase + 1024), 2 * kMiB - 1024);
  const ArenaStats stats = f.arena.stats();
  CHECK_EQ(stats.bytes_in_use, 1024);
  CHECK_EQ(stats.requested_bytes, 1000);
  CHECK_EQ(stats.free_bytes, 2 * kMiB - 1024);
  CHECK_EQ(stats.largest_free_bytes, 2 * kMiB - 1024);
  CHECK_EQ(stats.mapped_bytes, 2 * kMiB);
  CHECK_EQ(stats.reserved_bytes, 64 * kMiB);
  CHECK_EQ(stats.chunks_in_use, 1);
  CHECK_EQ(stats.free_chunks, 1);
  CHECK_EQ(stats.regions, 1);
  CHECK_EQ(stats.steps, 1);
  f.CheckInvariants();
}

TEST(ARemainderOfOneQuantumIsSplitOff) {
  Fixture f;
  CHECK_EQ(f.Allocate(2 * kMiB - 256), kBase);
  CHECK_EQ(f.arena.stats().largest_free_bytes, 256);
  CHECK_EQ(f.Allocate(256), kBase + 2 * kMiB - 256);
  CHECK_EQ(f.arena.stats().free_chunks, 0);
  CHECK_EQ(f.arena.stats().largest_free_bytes, 0);
}

TEST(ARequestForNothingGetsAChunkOfItsOwn) {
  Fixture f;
  CHECK_EQ(f.Allocate(0), kBase);
  CHECK_EQ(f.Allocate(0), kBase + 256);
  CHECK_EQ(f.arena.stats().bytes_in_use, 512);
  CHECK_EQ(f.arena.stats().requested_bytes, 0);
}

TEST(FreeingTheMiddleJoinsBothNeighbours) {
  Fixture f;
  for (int i = 0; i < 4; ++i) CHECK_EQ(f.Allocate(4096), kBase + 4096 * i);
  f.Free(kBase);
  f.Free(kBase + 8192);
  CHECK_EQ(f.arena.stats().free_chunks, 3);
  f.Free(kBase + 4096);
  CHECK_EQ(f.arena.stats().free_chunks, 2);
  CHECK_EQ(f.BytesAt(kBase), 3 * 4096);
  CHECK_EQ(f.arena.Find(kBase + 4096), kNoChunk);
  CHECK_EQ(f.arena.Find(kBase + 8192), kNoChunk);
}

TEST(FreeingBesideOneFreeNeighbourJoinsThatOne) {
  Fixture f;
  for (int i = 0; i < 4; ++i) f.Allocate(4096);
  f.Free(kBase + 4096);
  f.Free(kBase);  // joins above
  CHECK_EQ(f.BytesAt(kBase), 8192);
  f.Free(kBase + 8192);  // joins below
  CHECK_EQ(f.BytesAt(kBase), 3 * 4096);
  f.Free(kBase + 3 * 4096);
  CHECK_EQ(f.BytesAt(kBase), 2 * kMiB);
  CHECK_EQ(f.arena.stats().bytes_in_use, 0);
}

TEST(TheSmallestChunkThatFitsIsTaken) {
  Fixture f;
  // Holes of 16, 5 and 8 KiB, each with a guard behind it.
  const uintptr_t large = f.Allocate(16 * kKiB);
  f.Allocate(256);
  const uintptr_t small = f.Allocate(5 * kKiB);
  f.Allocate(256);
  const uintptr_t medium = f.Allocate(8 * kKiB);
  f.Allocate(256);
  f.Free(large);
  f.Free(small);
  f.Free(medium);
  CHECK_EQ(f.Allocate(6 * kKiB), medium);
  CHECK_EQ(f.Allocate(5 * kKiB), small);
  CHECK_EQ(f.Allocate(5 * kKiB), large);
}

TEST(BestFitIsExactAmongSizesOfOneBin) {
  Fixture f;
  const uintptr_t larger = f.Allocate(33 * 256);
  f.Allocate(256);
  const uintptr_t exact = f.Allocate(32 * 256);
  f.Allocate(256);
  f.Free(larger);
  f.Free(exact);
  CHECK_EQ(f.Allocate(32 * 256), exact);
}

TEST(TheLowestAddressWinsATie) {
  Fixture f;
  std::vector<uintptr_t> holes;
  for (int i = 0; i < 3; ++i) {
    holes.push_back(f.Allocate(4096));
    f.Allocate(256);
  }
  f.Free(holes[1]);
  f.Free(holes[2]);
  f.Free(holes[0]);
  CHECK_EQ(f.Allocate(4096), holes[0]);
  CHECK_EQ(f.Allocate(4096), holes[1]);
  CHECK_EQ(f.Allocate(4096), holes[2]);
}

TEST(EveryAlignmentUpToTwoMebibytesIsMet) {
  Fixture f;
  CHECK_EQ(f.Allocate(1), kBase);  // so that nothing is aligned by chance
  // Each at the first multiple of its alignment; what lies before stays free.
  CHECK_EQ(f.Allocate(1, 512), kBase + 512);
  CHECK_EQ(f.Allocate(1, 4096), kBase + 4096);
  CHECK_EQ(f.Allocate(1, kMiB), kBase + kMiB);
  CHECK_EQ(f.Allocate(1, 2 * kMiB), kBase + 2 * kMiB);
  CHECK_EQ(f.Allocate(1), kBase + 256);
  CHECK_EQ(f.Allocate(1), kBase + 768);
  CHECK_EQ(f.arena.stats().bytes_in_use, 7 * 256);
  f.CheckInvariants();
}

TEST(AnAlignedRequestTakesTheSmallestCandidateThatFits) {
  Fixture f;
  // Holes [256, 8448) and [16384, 24832): the smaller has no aligned 8 KiB.
  f.Allocate(256);
  const uintptr_t crooked = f.Allocate(8192);
  f.Allocate(16384 - 8448);
  const uintptr_t straight = f.Allocate(8448);
  f.Allocate(256);
  CHECK_EQ(crooked, kBase + 256);
  CHECK_EQ(straight, kBase + 16384);
  f.Free(crooked);
  f.Free(straight);
  CHECK_EQ(f.Allocate(8192, 8192), straight);
  CHECK_EQ(f.Allocate(8192), crooked);
}

TEST(BeyondThirtyTwoCandidatesASureFitIsTakenFirst) {
  // `holes` pieces of 4,096 bytes at 256 past a page, one that fits at a page,
  // and one of 4,096 + 4,096 - 256 bytes that fits wherever it is.
  const auto allocated_at = [](int holes) {
    Fixture f;
    std::vector<uintptr_t> free;
    f.Allocate(256);
    for (int i = 0; i < holes; ++i) {
      free.push_back(f.Allocate(4096));
      f.Allocate(4096);
    }
    f.Allocate(4096 - 256);
    const uintptr_t page = f.Allocate(4096);
    f.Allocate(256);
    const uintptr_t sure = f.Allocate(8192 - 256);
    f.Allocate(256);
    free.push_back(page);
    free.push_back(sure);
    for (const uintptr_t address : free) f.Free(address);
    const uintptr_t got = f.Allocate(4096, 4096);
    if (got == page) return std::string("page");
    return std::string(got == RoundUp(sure, 4096) ? "sure" : "other");
  };
  CHECK_EQ(allocated_at(31), "page");
  CHECK_EQ(allocated_at(32), "sure");
}

TEST(FindKnowsStartsOnly) {
  Fixture f;
  const ChunkId id = f.arena.Allocate(4096);
  CHECK_EQ(f.arena.Find(kBase), id);
  CHECK_EQ(f.arena.Find(kBase + 256), kNoChunk);
  CHECK_EQ(f.arena.Find(kBase - 256), kNoChunk);
  CHECK_EQ(f.arena.Find(0), kNoChunk);
  CHECK(f.arena.Find(kBase + 4096) != kNoChunk);      // free
  CHECK(f.arena.Find(kBase + 2 * kMiB) != kNoChunk);  // unmapped
  CHECK(f.arena.chunk(f.arena.Find(kBase + 2 * kMiB)).state ==
        ChunkState::kUnmapped);
}

TEST(PeaksStayUntilReset) {
  Fixture f;
  f.Allocate(kMiB);
  f.Allocate(8 * kMiB);
  f.Free(kBase + kMiB);
  CHECK_EQ(f.arena.Trim() > 0, true);
  ArenaStats stats = f.arena.stats();
  CHECK_EQ(stats.bytes_in_use, kMiB);
  CHECK_EQ(stats.peak_bytes_in_use, 9 * kMiB);
  CHECK(stats.peak_mapped_bytes > stats.mapped_bytes);
  f.arena.ResetPeaks();
  stats = f.arena.stats();
  CHECK_EQ(stats.peak_bytes_in_use, kMiB);
  CHECK_EQ(stats.peak_mapped_bytes, stats.mapped_bytes);
}

TEST(TheLargestRequestIsRefusedWithoutOverflow) {
  Fixture f;
  for (const size_t alignment : {size_t{1}, kMaxAlignment}) {
    CHECK_EQ(f.arena.Allocate(kMaxRequest, alignment), kNoChunk);
    CHECK_EQ(f.arena.Allocate(kMaxRequest - 1, alignment), kNoChunk);
  }
  f.CheckInvariants();
  Arena unlimited(&f.source, ~size_t{0} / 2);
  f.source.set_capacity(64 * kMiB);
  CHECK_EQ(unlimited.Allocate(kMaxRequest, kMaxAlignment), kNoChunk);
  CHECK_EQ(unlimited.CheckInvariants().value_or(""), "");
}

TEST(ChunksAreVisitedInOrderOfAddress) {
  Fixture f;
  f.Allocate(256);
  f.Allocate(512);
  f.Free(kBase);
  std::vector<uintptr_t> starts;
  f.arena.ForEachChunk([&](const Chunk& c) { starts.push_back(c.address); });
  CHECK(starts == std::vector<uintptr_t>{kBase, kBase + 256, kBase + 768,
                                         kBase + 2 * kMiB});
}

TEST(TheDestructorGivesEverythingBack) {
  for (const bool virtual_memory : {true, false}) {
    FakeSource source({.virtual_memory = virtual_memory});
    {
      Arena arena(&source, 64 * kMiB);
      for (int i = 0; i < 20; ++i) arena.Allocate(kMiB + 1);
      CHECK(source.mapped_bytes() > 0);
    }
    CHECK_EQ(source.mapped_bytes(), 0);
    CHECK_EQ(source.reserved_bytes(), 0);
  }
}

}  // namespace
}  // namespace jax_bfc
