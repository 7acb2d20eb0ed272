// An arena broken on purpose is found out, and the invariant is named.
#include <functional>
#include <string>

#include "check.h"
#include "core/arena.h"
#include "source/fake.h"

namespace jax_bfc {

// Reaches what no caller may.
struct ArenaTestPeer {
  static Chunk& At(Arena& arena, uintptr_t address) {
    return arena.chunks_[arena.Find(address)];
  }
  static ChunkTable& chunks(Arena& arena) { return arena.chunks_; }
  static BinSet& bins(Arena& arena) { return arena.bins_; }
  static AddressMap& map(Arena& arena) { return arena.map_; }
  static ArenaStats& stats(Arena& arena) { return arena.stats_; }
  static ReservedMap<ChunkId>& unmapped(Arena& arena) {
    return arena.unmapped_;
  }
  static ReservedMap<size_t>& steps(Arena& arena) { return arena.steps_; }
  static void SetLimit(Arena& arena, size_t bytes) {
    arena.limit_bytes_ = bytes;
  }
};

namespace {

using Peer = ArenaTestPeer;

constexpr uintptr_t kBase = FakeSource::kBase;
constexpr uintptr_t kFirst = kBase, kHole = kBase + 4096, kThird = kBase + 8192;
constexpr uintptr_t kUnmapped = kBase + (2 << 20);

// [in use, free, in use, free | unmapped], of 4,096 bytes but the last two.
struct Fixture {
  Fixture() {
    arena.Allocate(4096);
    const ChunkId hole = arena.Allocate(4096);
    arena.Allocate(4096);
    arena.Free(hole);
  }

  FakeSource source{{.keeps_errors = true}};
  Arena arena{&source, 64 << 20};
};

// The invariant that is found broken after `damage`: "I1" to "I7", or "none".
std::string FoundAfter(const std::function<void(Arena&)>& damage) {
  Fixture f;
  CHECK_EQ(f.arena.CheckInvariants().value_or(""), "");
  damage(f.arena);
  return f.arena.CheckInvariants().value_or("none").substr(0, 2);
}

TEST(AGapBreaksI1) {
  CHECK_EQ(FoundAfter([](Arena& a) { Peer::At(a, kHole).bytes -= 256; }), "I1");
}

TEST(AnOverlapBreaksI1) {
  CHECK_EQ(FoundAfter([](Arena& a) { Peer::At(a, kFirst).bytes += 256; }),
           "I1");
}

TEST(AWrongBackLinkBreaksI1) {
  CHECK_EQ(
      FoundAfter([](Arena& a) { Peer::At(a, kThird).previous = kNoChunk; }),
      "I1");
}

TEST(TwoFreeNeighboursBreakI2) {
  CHECK_EQ(FoundAfter(
               [](Arena& a) { Peer::At(a, kThird).state = ChunkState::kFree; }),
           "I2");
}

TEST(AFreeChunkInNoBinBreaksI3) {
  CHECK_EQ(FoundAfter([](Arena& a) {
             Peer::bins(a).Erase(Peer::chunks(a), a.Find(kHole));
           }),
           "I3");
}

TEST(AChunkInUseInABinBreaksI3) {
  CHECK_EQ(FoundAfter([](Arena& a) {
             Peer::bins(a).Insert(Peer::chunks(a), a.Find(kFirst));
           }),
           "I3");
}

TEST(AChunkThatOutgrewItsBinBreaksI3) {
  CHECK_EQ(FoundAfter([](Arena& a) {
             // The border between the hole and what is above it moves.
             Peer::map(a).Erase(Peer::chunks(a), a.Find(kThird));
             Chunk& third = Peer::chunks(a)[Peer::At(a, kHole).next];
             Peer::At(a, kHole).bytes += 2048;
             third.address += 2048;
             third.bytes -= 2048;
             third.requested_bytes -= 2048;
             Peer::map(a).Insert(Peer::chunks(a), Peer::At(a, kHole).next);
           }),
           "I3");
}

TEST(ACrookedBorderBreaksI4) {
  CHECK_EQ(FoundAfter([](Arena& a) {
             Chunk& hole = Peer::At(a, kHole);
             Peer::At(a, kFirst).bytes += 8;
             hole.address += 8;
             hole.bytes -= 8;
           }),
           "I4");
}

TEST(AChunkThatIsNotFoundBreaksI5) {
  CHECK_EQ(FoundAfter([](Arena& a) {
             Peer::map(a).Erase(Peer::chunks(a), a.Find(kHole));
           }),
           "I5");
}

TEST(AnAddressOfNoChunkBreaksI5) {
  CHECK_EQ(FoundAfter([](Arena& a) {
             const ChunkId stray = Peer::chunks(a).Take();
             Peer::chunks(a)[stray].address = kBase + 256;
             Peer::map(a).Insert(Peer::chunks(a), stray);
           }),
           "I5");
}

TEST(AnUnmappedChunkThatIsNotListedBreaksI5) {
  CHECK_EQ(FoundAfter([](Arena& a) { Peer::unmapped(a).Erase(kUnmapped); }),
           "I5");
}

TEST(EachWrongCounterBreaksI6) {
  using Counter = size_t ArenaStats::*;
  for (const Counter counter :
       {&ArenaStats::bytes_in_use, &ArenaStats::requested_bytes,
        &ArenaStats::free_bytes, &ArenaStats::mapped_bytes,
        &ArenaStats::reserved_bytes, &ArenaStats::chunks_in_use,
        &ArenaStats::free_chunks, &ArenaStats::regions, &ArenaStats::steps}) {
    CHECK_EQ(FoundAfter([&](Arena& a) { ++(Peer::stats(a).*counter); }), "I6");
    CHECK_EQ(FoundAfter([&](Arena& a) { --(Peer::stats(a).*counter); }), "I6");
  }
  CHECK_EQ(FoundAfter([](Arena& a) { ++Peer::stats(a).growths; }), "I6");
  CHECK_EQ(FoundAfter([](Arena& a) { ++Peer::stats(a).trims; }), "I6");
}

TEST(AForgottenStepBreaksI6) {
  CHECK_EQ(FoundAfter([](Arena& a) { Peer::steps(a).Erase(kBase); }), "I6");
}

TEST(MoreRequestedThanTheChunkHasBreaksI6) {
  CHECK_EQ(FoundAfter([](Arena& a) {
             Peer::At(a, kFirst).requested_bytes += 4096;
             Peer::stats(a).requested_bytes += 4096;
           }),
           "I6");
}

TEST(MoreMappedThanTheLimitBreaksI7) {
  CHECK_EQ(FoundAfter([](Arena& a) { Peer::SetLimit(a, 1 << 20); }), "I7");
}

TEST(APeakUnderItsCurrentBreaksI7) {
  CHECK_EQ(FoundAfter([](Arena& a) { --Peer::stats(a).peak_mapped_bytes; }),
           "I7");
  CHECK_EQ(FoundAfter([](Arena& a) { Peer::stats(a).peak_bytes_in_use = 0; }),
           "I7");
}

}  // namespace
}  // namespace jax_bfc
