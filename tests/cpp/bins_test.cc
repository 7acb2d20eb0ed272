// Size classes, and the order that the bins keep.
#include "core/bins.h"

#include <algorithm>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "check.h"

namespace jax_bfc {
namespace {

using testing::Seeds;

constexpr uintptr_t kBase = uintptr_t{1} << 40;

// Chunks without an arena.
struct Fixture {
  ChunkId Add(uintptr_t address, size_t bytes) {
    chunks.Reserve(chunks_taken_ + 1);
    ++chunks_taken_;
    const ChunkId id = chunks.Take();
    chunks[id].address = address;
    chunks[id].bytes = bytes;
    bins.Insert(chunks, id);
    return id;
  }
  void Remove(ChunkId id) {
    bins.Erase(chunks, id);
    chunks.GiveBack(id);
  }

  ChunkTable chunks;
  size_t chunks_taken_ = 0;
  BinSet bins;
};

TEST(BinsCoverEverySizeInOrder) {
  int previous = -1;
  for (size_t bytes = kQuantum; bytes < size_t{1} << 48; bytes += bytes / 64) {
    bytes = RoundUp(bytes, kQuantum);
    const int bin = BinForSize(bytes);
    CHECK(bin >= previous);
    CHECK(bin < kNumBins);
    previous = bin;
  }
}

TEST(NoBinIsLeftOut) {
  std::set<int> bins;
  for (size_t octave = 8; octave < 48; ++octave) {
    for (size_t part = 0; part < kSubBins; ++part) {
      const size_t bytes = (size_t{1} << octave) / kSubBins * (kSubBins + part);
      if (bytes % kQuantum == 0) bins.insert(BinForSize(bytes));
    }
  }
  // Below kSubBins quanta a bin holds one size.
  for (size_t units = 1; units < kSubBins; ++units) {
    bins.insert(BinForSize(units * kQuantum));
  }
  CHECK_EQ(bins.size(), BinForSize((size_t{1} << 48) - kQuantum) + 1);
}

TEST(RequestsRoundUpToTheQuantumAndNothingRoundsToNothing) {
  CHECK_EQ(RoundedBytes(0), 256);
  CHECK_EQ(RoundedBytes(1), 256);
  CHECK_EQ(RoundedBytes(256), 256);
  CHECK_EQ(RoundedBytes(257), 512);
  CHECK_EQ(RoundedBytes(kMaxRequest), kMaxRequest);
}

TEST(AlignmentsArePowersOfTwoUpToTwoMebibytes) {
  for (const size_t valid : {1, 2, 256, 4096, 2 << 20}) {
    CHECK(IsValidAlignment(valid));
  }
  for (const size_t invalid : {0, 3, 257, 6 << 20, 4 << 20}) {
    CHECK(!IsValidAlignment(invalid));
  }
}

TEST(EmptyBinsHaveNoFit) {
  Fixture f;
  CHECK_EQ(f.bins.BestFit(f.chunks, 256), kNoChunk);
  CHECK_EQ(f.bins.Largest(f.chunks), kNoChunk);
  f.Remove(f.Add(kBase, 256));
  CHECK_EQ(f.bins.BestFit(f.chunks, 256), kNoChunk);
  CHECK_EQ(f.bins.Largest(f.chunks), kNoChunk);
}

TEST(BestFitIsExactWithinOneBin) {
  Fixture f;
  // 128 and 129 quanta share a bin.
  CHECK_EQ(BinForSize(128 * 256), BinForSize(129 * 256));
  const ChunkId large = f.Add(kBase, 129 * 256);
  const ChunkId small = f.Add(kBase + (1 << 20), 128 * 256);
  CHECK_EQ(f.bins.BestFit(f.chunks, 128 * 256), small);
  CHECK_EQ(f.bins.BestFit(f.chunks, 129 * 256), large);
  CHECK_EQ(f.bins.BestFit(f.chunks, 130 * 256), kNoChunk);
}

TEST(TheLowestAddressWinsATie) {
  Fixture f;
  const ChunkId high = f.Add(kBase + 4096, 512);
  const ChunkId low = f.Add(kBase, 512);
  CHECK_EQ(f.bins.BestFit(f.chunks, 512), low);
  CHECK_EQ(f.bins.Next(f.chunks, low), high);
  CHECK_EQ(f.bins.Next(f.chunks, high), kNoChunk);
  CHECK_EQ(f.bins.Largest(f.chunks), high);
}

TEST(TheNextBinIsFoundAcrossEmptyWords) {
  Fixture f;
  const ChunkId huge = f.Add(kBase, size_t{1} << 46);
  CHECK_EQ(f.bins.BestFit(f.chunks, 256), huge);
  const ChunkId tiny = f.Add(kBase + (size_t{1} << 46), 256);
  CHECK_EQ(f.bins.BestFit(f.chunks, 256), tiny);
  CHECK_EQ(f.bins.BestFit(f.chunks, 512), huge);
  CHECK_EQ(f.bins.Largest(f.chunks), huge);
  f.Remove(huge);
  CHECK_EQ(f.bins.Largest(f.chunks), tiny);
}

TEST(EverySearchAgreesWithASortedSet) {
  for (const uint64_t seed : Seeds({1, 2, 3})) {
    std::mt19937_64 random(seed);
    Fixture f;
    std::set<std::pair<size_t, uintptr_t>> expected;
    std::vector<ChunkId> ids;
    const auto address = [&](ChunkId id) {
      return id == kNoChunk ? uintptr_t{0} : f.chunks[id].address;
    };
    for (int i = 0; i < 20'000; ++i) {
      // Few sizes in few bins, so that trees are deep and ties common.
      const size_t bytes = 256 * (1 + random() % 200);
      if (random() % 5 < 3 || ids.empty()) {
        const uintptr_t at = kBase + random() % (1 << 30) / 256 * 256;
        if (!expected.emplace(bytes, at).second) continue;
        ids.push_back(f.Add(at, bytes));
      } else {
        std::swap(ids[random() % ids.size()], ids.back());
        const Chunk& c = f.chunks[ids.back()];
        expected.erase({c.bytes, c.address});
        f.Remove(ids.back());
        ids.pop_back();
      }
      const auto fit = expected.lower_bound({bytes, 0});
      CHECK_EQ(address(f.bins.BestFit(f.chunks, bytes)),
               fit == expected.end() ? 0 : fit->second);
      const uintptr_t from = kBase + random() % (1 << 30);
      const auto bound = expected.lower_bound({bytes, from});
      CHECK_EQ(address(f.bins.LowerBound(f.chunks, bytes, from)),
               bound == expected.end() ? 0 : bound->second);
      CHECK_EQ(address(f.bins.Largest(f.chunks)),
               expected.empty() ? 0 : expected.rbegin()->second);
    }
  }
}

}  // namespace
}  // namespace jax_bfc
