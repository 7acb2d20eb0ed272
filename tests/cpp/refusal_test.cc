// An arena on a host that has no memory left for records: each function does
// all that it is asked or nothing, and what gives back always works.
#include <cstdint>
#include <functional>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "core/arena.h"
#include "refuse_new.h"
#include "source/fake.h"

namespace jax_bfc::testing {
namespace {

constexpr size_t kKiB = 1024, kMiB = 1024 * kKiB;

// An arena, its source, and what it has handed out.
class Fixture {
 public:
  explicit Fixture(bool virtual_memory, size_t granularity = 64 * kKiB)
      : source_({.virtual_memory = virtual_memory, .granularity = granularity}),
        arena_(&source_, 256 * kMiB, {granularity, 1.0, granularity}) {
    live_.reserve(1 << 16);  // so that it takes no part in what is refused
  }

  Arena& arena() { return arena_; }
  FakeSource& source() { return source_; }

  bool Allocate(size_t bytes, size_t alignment) {
    return Keep(arena_.Allocate(bytes, alignment));
  }
  bool TryAllocate(size_t bytes, size_t alignment) {
    return Keep(arena_.TryAllocate(bytes, alignment));
  }
  void Free(size_t index) {
    if (live_.empty()) return;
    std::swap(live_[index % live_.size()], live_.back());
    arena_.Free(live_.back());
    live_.pop_back();
  }
  // The same as Trim, in two parts; every third chunk is made free instead.
  size_t TrimInParts() {
    size_t bytes = 0, n = 0;
    for (ChunkId held = arena_.HoldFreeSteps(); held != kNoChunk;) {
      const ChunkId next = arena_.NextHeld(held);
      if (++n % 3 == 0) {
        arena_.Free(held);
      } else {
        bytes += arena_.TrimHeld(held);
      }
      held = next;
    }
    return bytes;
  }
  void FreeAll() {
    while (!live_.empty()) Free(0);
  }

  // Every invariant, and nothing lost on either side.
  void Check() {
    const std::optional<std::string> broken = arena_.CheckInvariants();
    if (broken) Fail(__FILE__, __LINE__, *broken);
    const ArenaStats stats = arena_.stats();
    size_t in_use = 0;
    for (const ChunkId id : live_) in_use += arena_.chunk(id).bytes;
    CHECK_EQ(stats.bytes_in_use, in_use);
    CHECK_EQ(stats.chunks_in_use, live_.size());
    CHECK_EQ(stats.mapped_bytes, source_.mapped_bytes());
    CHECK_EQ(stats.reserved_bytes, source_.reserved_bytes());
  }

 private:
  bool Keep(ChunkId id) {
    if (id != kNoChunk) live_.push_back(id);
    return id != kNoChunk;
  }

  FakeSource source_;
  Arena arena_;
  std::vector<ChunkId> live_;
};

using Step = std::function<void(Fixture&)>;

// Waves of chunks of all sizes, so many that records are obtained for chunks as
// well as for steps; each is an operation of its own.
std::vector<Step> AllOperations() {
  std::vector<Step> steps;
  const auto allocate = [&](size_t bytes, size_t alignment = kQuantum) {
    steps.push_back([=](Fixture& f) { f.Allocate(bytes, alignment); });
  };
  const auto free = [&](size_t index) {
    steps.push_back([=](Fixture& f) { f.Free(index); });
  };
  allocate(1000);
  allocate(100 * kKiB, 4096);
  allocate(3 * kKiB, 2 * kMiB);
  for (int i = 0; i < 40; ++i) allocate(64 * kKiB);
  for (size_t i = 0; i < 20; ++i) free(3 * i);
  steps.push_back([](Fixture& f) { f.arena().Trim(); });
  for (int i = 0; i < 700; ++i) allocate(256, i % 7 == 0 ? 4096 : kQuantum);
  steps.push_back([](Fixture& f) { f.arena().Grow(kMiB); });
  steps.push_back([](Fixture& f) { f.TryAllocate(700 * kKiB, 64 * kKiB); });
  for (size_t i = 0; i < 100; ++i) free(5 * i);
  steps.push_back([](Fixture& f) { f.TrimInParts(); });
  allocate(512 * kKiB);
  steps.push_back([](Fixture& f) { f.FreeAll(); });
  steps.push_back([](Fixture& f) { f.arena().Trim(); });
  return steps;
}

TEST(WhateverAllocationTheHostRefusesTheArenaIsWhole) {
  const std::vector<Step> operations = AllOperations();
  for (const bool virtual_memory : {true, false}) {
    for (const uint64_t in_a_row : {1, 2, 1000}) {
      Refusals refusals(in_a_row);
      while (refusals.Next()) {
        Fixture f(virtual_memory);
        for (const Step& operation : operations) {
          if (refusals.During([&] { operation(f); })) {
            f.Check();
            // With memory again the next request is served.
            CHECK(f.Allocate(1000, kQuantum));
          }
          if (refusals.rounds() % 16 == 1) f.Check();
        }
        f.FreeAll();
        f.arena().Trim();
        f.Check();
        CHECK_EQ(f.source().mapped_bytes(), 0);
      }
      CHECK(refusals.rounds() > 40);
    }
  }
}

TEST(ARequestThatTheHostHasNoRecordsForChangesNothing) {
  for (const bool virtual_memory : {true, false}) {
    Refusals refusals;
    while (refusals.Next()) {
      Fixture f(virtual_memory);
      f.Allocate(64 * kKiB, kQuantum);
      const ArenaStats before = f.arena().stats();
      bool served = false;
      refusals.During([&] { served = f.Allocate(3 * kMiB, kQuantum); });
      f.Check();
      if (!served && !virtual_memory) CHECK(f.arena().stats() == before);
      CHECK(served || f.arena().stats().mapped_bytes == before.mapped_bytes);
      CHECK(served || refusals.refused());
    }
  }
}

TEST(GivingBackNeedsNoMemory) {
  // Steps of one granule, each with chunks at its edges and across them, so
  // that giving back divides as many chunks as it can.
  for (const bool virtual_memory : {true, false}) {
    for (const bool in_parts : {false, true}) {
      Fixture f(virtual_memory, 4 * kKiB);
      for (int i = 0; i < 3000; ++i) {
        CHECK(f.Allocate(256 * (1 + i * 7 % 40), kQuantum));
      }
      for (int round = 0; round < 40; ++round) {
        uint64_t refused = RefuseAll([&] {
          for (int i = 0; i < 75; ++i) f.Free(static_cast<size_t>(i) * 131);
        });
        CHECK_EQ(refused, 0);
        f.Check();
        const size_t trimmable = f.arena().TrimmableBytes();
        size_t bytes = 0;
        refused = RefuseAll(
            [&] { bytes = in_parts ? f.TrimInParts() : f.arena().Trim(); });
        CHECK_EQ(refused, 0);
        CHECK(in_parts ? bytes <= trimmable : bytes == trimmable);
        f.Check();
      }
      CHECK_EQ(RefuseAll([&] { f.arena().Trim(); }), 0);
      CHECK_EQ(f.source().mapped_bytes(), 0);
    }
  }
}

// As above, in any order: what is held while others come and go, and sources
// that do not take everything back.
TEST(GivingBackNeedsNoMemoryInAnyOrder) {
  for (const uint64_t seed : Seeds({1, 2, 3, 4, 5, 6, 7, 8})) {
    std::mt19937_64 random(seed);
    Fixture f(/*virtual_memory=*/true, 4 * kKiB);
    for (int i = 0; i < 3000; ++i) {
      const bool rising = i / 300 % 2 == 0;
      if (random() % 3 != (rising ? 0 : 1) && (rising || random() % 2 == 0)) {
        CHECK(f.Allocate(256 * (1 + random() % 60), kQuantum));
        continue;
      }
      const size_t index = random();
      const bool in_parts = random() % 2 == 0, trims = random() % 8 == 0;
      if (random() % 2 == 0) f.source().RefuseNextUnmap(1);
      CHECK_EQ(RefuseAll([&] {
                 if (!trims) return f.Free(index);
                 if (in_parts) {
                   f.TrimInParts();
                 } else {
                   f.arena().Trim();
                 }
               }),
               0);
      f.source().ResetFuse();
      if (i % 16 == 0) f.Check();
    }
    f.source().RefuseNextUnmap(0);
    f.FreeAll();
    f.Check();
    CHECK_EQ(RefuseAll([&] { f.arena().Trim(); }), 0);
    CHECK_EQ(f.source().mapped_bytes(), 0);
  }
}

}  // namespace
}  // namespace jax_bfc::testing
