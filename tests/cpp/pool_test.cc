// One thread and a pool: front caches, accounting, refusals, limits.
#include "pool/pool.h"

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "pool_fixture.h"

namespace jax_bfc::testing {
namespace {

uintptr_t Address(const Allocation& a) {
  return reinterpret_cast<uintptr_t>(a.ptr);
}

// ---------------------------------------------------------------------------
// Front caches.

TEST(AFreedChunkIsFoundAgainWithoutTheArena) {
  Pool& pool = NewPool();
  const Allocation first = Get(pool, 1000);
  CHECK(Free(pool, first));
  const PoolStats before = CheckCounted(pool);
  CHECK_EQ(before.cached_bytes, 1024);
  const Allocation again = Get(pool, 900);  // of the same chunk size
  const PoolStats after = CheckCounted(pool);
  CHECK_EQ(again.ptr, first.ptr);
  CHECK(again.id != first.id);
  CHECK_EQ(again.bytes, 1024);
  CHECK_EQ(after.cache_hits, before.cache_hits + 1);
  CHECK_EQ(after.cached_bytes, 0);
  CHECK(after.arena == before.arena);
}

TEST(TheNewestChunkOfASizeIsFoundFirst) {
  Pool& pool = NewPool();
  const Allocation a = Get(pool, 512);
  const Allocation b = Get(pool, 512);
  CHECK(Free(pool, b));
  CHECK(Free(pool, a));
  CHECK_EQ(Get(pool, 512).ptr, a.ptr);
  CHECK_EQ(Get(pool, 512).ptr, b.ptr);
}

TEST(ACacheHitIsOfExactlyTheChunkSize) {
  Pool& pool = NewPool();
  const Allocation a = Get(pool, 1024);
  CHECK(Free(pool, a));
  CHECK(Get(pool, 768).ptr != a.ptr);
  CHECK_EQ(CheckCounted(pool).cache_hits, 0);
}

TEST(ACacheHitHonoursTheAlignment) {
  Pool& pool = NewPool();
  const Allocation aligned = Get(pool, 256);  // the base of the region
  const Allocation other = Get(pool, 256);
  CHECK_EQ(Address(aligned) % kMaxAlignment, 0);
  CHECK_EQ(Address(other) % 512, 256);
  CHECK(Free(pool, aligned));
  CHECK(Free(pool, other));
  CHECK_EQ(Get(pool, 256, kMaxAlignment).ptr, aligned.ptr);
  CHECK_EQ(CheckCounted(pool).cache_hits, 1);
  // What is left in the cache does not do.
  const Allocation third = Get(pool, 256, 4096);
  CHECK_EQ(Address(third) % 4096, 0);
  CHECK_EQ(CheckCounted(pool).cache_hits, 1);
  CHECK_EQ(Get(pool, 256).ptr, other.ptr);
}

TEST(EveryAlignmentIsHonoured) {
  Pool& pool = NewPool();
  for (int round = 0; round < 2; ++round) {  // the second from caches
    std::vector<Allocation> live;
    for (size_t alignment = 1; alignment <= kMaxAlignment; alignment *= 2) {
      live.push_back(Get(pool, 700, alignment));
      CHECK_EQ(Address(live.back()) % std::max<size_t>(alignment, 256), 0);
    }
    for (const Allocation& a : live) CHECK(Free(pool, a));
    CheckCounted(pool);
  }
}

TEST(ACacheIsBoundedInChunks) {
  Pool& pool = NewPool();
  std::vector<Allocation> live;
  for (uint32_t i = 0; i < kCacheChunks + 1; ++i) live.push_back(Get(pool, 1));
  for (uint32_t i = 0; i < kCacheChunks; ++i) {
    CHECK(Free(pool, live[i]));
    CHECK_EQ(CheckCounted(pool).cached_bytes, (i + 1) * kQuantum);
  }
  // One more: the oldest leave.
  CHECK(Free(pool, live[kCacheChunks]));
  CHECK_EQ(CheckCounted(pool).cached_bytes,
           (kCacheChunks - kCacheEvicted + 1) * kQuantum);
}

TEST(ACacheIsBoundedInBytes) {
  Pool& pool = NewPool();
  const Allocation a = Get(pool, 512 * kKiB);
  const Allocation b = Get(pool, 512 * kKiB);
  const Allocation c = Get(pool, 256);
  CHECK(Free(pool, a));
  CHECK(Free(pool, b));
  CHECK_EQ(CheckCounted(pool).cached_bytes, kMiB);
  CHECK(Free(pool, c));
  CHECK_EQ(CheckCounted(pool).cached_bytes, 512 * kKiB + 256);
  CHECK_EQ(Get(pool, 512 * kKiB).ptr, b.ptr);
  CHECK_EQ(CheckCounted(pool).cache_hits, 1);
}

TEST(AChunkLargerThanACacheGoesBackAtOnce) {
  Pool& pool = NewPool();
  const Allocation small = Get(pool, 256);
  const Allocation large = Get(pool, kMiB + 256);
  CHECK(Free(pool, small));
  CHECK(Free(pool, large));
  CHECK_EQ(CheckCounted(pool).cached_bytes, 256);
}

TEST(CachesAreFlushedAndCoalescedBeforeThePoolGrows) {
  Pool& pool = NewPool();
  std::vector<Allocation> live;
  for (int i = 0; i < 8; ++i) live.push_back(Get(pool, 256 * kKiB));
  const PoolStats full = CheckCounted(pool);
  CHECK_EQ(full.arena.mapped_bytes, 2 * kMiB);
  CHECK_EQ(full.arena.free_bytes, 0);
  for (const Allocation& a : live) CHECK(Free(pool, a));
  CHECK_EQ(CheckCounted(pool).cached_bytes, kMiB);
  const Allocation whole = Get(pool, 2 * kMiB);
  CHECK_EQ(whole.ptr, live[0].ptr);
  const PoolStats after = CheckCounted(pool);
  CHECK_EQ(after.arena.growths, full.arena.growths);
  CHECK_EQ(after.arena.mapped_bytes, 2 * kMiB);
  CHECK_EQ(after.cached_bytes, 0);
}

TEST(TrimGivesBackWhatTheCachesHold) {
  Pool& pool = NewPool();
  const Allocation a = Get(pool, 256);
  CHECK_EQ(pool.Trim(), 0);
  CHECK(Free(pool, a));
  CHECK_EQ(pool.Trim(), 2 * kMiB);
  const PoolStats s = CheckCounted(pool);
  CHECK_EQ(s.arena.mapped_bytes, 0);
  CHECK_EQ(s.cached_bytes, 0);
  CHECK_EQ(NewPool().Trim(), 0);  // never used
}

// ---------------------------------------------------------------------------
// Accounting.

TEST(EveryFigureIsRightAtEveryMoment) {
  for (const uint64_t seed : Seeds({1, 2, 3})) {
    std::mt19937_64 random(seed);
    Pool& pool = NewPool();
    struct Live {
      Allocation allocation;
      size_t bytes;
    };
    std::vector<Live> live;
    size_t in_use = 0, peak = 0, requested = 0, total = 0, largest = 0;
    for (uint64_t i = 1; i <= 2000;) {
      if (live.size() > 20 || (!live.empty() && random() % 2 == 0)) {
        std::swap(live[random() % live.size()], live.back());
        CHECK(Free(pool, live.back().allocation));
        in_use -= live.back().allocation.bytes;
        requested -= live.back().bytes;
        live.pop_back();
      } else {
        const size_t bytes = random() % (size_t{1} << random() % 21);
        live.push_back({Get(pool, bytes), bytes});
        CHECK_EQ(live.back().allocation.bytes, RoundedBytes(bytes));
        in_use += RoundedBytes(bytes);
        peak = std::max(peak, in_use);
        requested += bytes;
        total += bytes;
        largest = std::max(largest, bytes);
        CHECK_EQ(CheckCounted(pool).allocations, i++);
      }
      const PoolStats s = CheckCounted(pool);
      CHECK_EQ(s.bytes_in_use, in_use);
      CHECK_EQ(s.peak_bytes_in_use, peak);
      CHECK_EQ(s.requested_bytes, requested);
      CHECK_EQ(s.total_bytes, total);
      CHECK_EQ(s.largest_bytes, largest);
      CHECK_EQ(s.live, live.size());
    }
  }
}

TEST(ResettingPeaksStartsFromWhatIsInUse) {
  Pool& pool = NewPool();
  const Allocation small = Get(pool, 1000);
  CHECK(Free(pool, Get(pool, 3 * kMiB)));
  CHECK_EQ(CheckCounted(pool).peak_bytes_in_use, 3 * kMiB + 1024);
  CHECK_EQ(CheckCounted(pool).largest_bytes, 3 * kMiB);
  pool.ResetPeaks();
  CHECK_EQ(CheckCounted(pool).peak_bytes_in_use, 1024);
  CHECK_EQ(CheckCounted(pool).largest_bytes, 0);
  for (const KernelStats& kernel : pool.Kernels()) {
    CHECK_EQ(kernel.peak_bytes_in_use, kernel.bytes_in_use);
  }
  CHECK(Free(pool, small));
  CHECK_EQ(CheckCounted(pool).peak_bytes_in_use, 1024);
}

TEST(EachKernelIsChargedItsOwn) {
  Pool& pool = NewPool();
  const KernelId one = InternKernel("one");
  const KernelId labelled = InternLabel(one, "sums");
  const Allocation a = Get(pool, 300, 1, one);
  const Allocation b = Get(pool, 5000, 1, labelled);
  CHECK(Free(pool, a));
  CHECK(Free(pool, Get(pool, 300, 1, one)));
  const std::vector<KernelStats> rows = pool.Kernels();
  CHECK_EQ(rows.size(), 2);
  CHECK_EQ(rows[0].name, "one");
  CHECK_EQ(rows[0].calls, 2);
  CHECK_EQ(rows[0].allocations, 2);
  CHECK_EQ(rows[0].bytes_in_use, 0);
  CHECK_EQ(rows[0].peak_bytes_in_use, 512);
  CHECK_EQ(rows[0].total_bytes, 600);
  CHECK_EQ(rows[0].largest_bytes, 300);
  CHECK_EQ(rows[1].name, "one:sums");
  CHECK_EQ(rows[1].bytes_in_use, 5120);
  CHECK(Free(pool, b));
}

// ---------------------------------------------------------------------------
// Refused frees.

TEST(AFreeOfWhatIsNotInUseIsRefusedAndChangesNothing) {
  Pools& pools = NewPools(kLimit);
  Pool& pool = pools.Add(kLimit);
  Pool& second = pools.Add(kLimit);
  const Allocation stale = Get(pool, 1000);
  CHECK(Free(pool, stale));
  const Allocation live = Get(pool, 1000);
  CHECK_EQ(live.ptr, stale.ptr);
  const Allocation freed = Get(pool, 2000);
  CHECK(Free(pool, freed));
  const Allocation foreign = Get(second, 1000);
  int local = 0;

  const PoolStats before = CheckCounted(pool);
  CHECK(!Free(pool, stale));            // the address is another's now
  CHECK(!Free(pool, freed));            // twice
  CHECK(!Free(pool, foreign));          // another pool's
  CHECK(!pool.Free(&local, live.id));   // never allocated
  CHECK(!pool.Free(nullptr, live.id));  //
  CHECK(!pool.Free(static_cast<char*>(live.ptr) + 1, live.id));
  CHECK(!pool.Free(live.ptr, 0));             //
  CHECK(!pool.Free(live.ptr, ~uint64_t{0}));  // another pool, no such slot
  CHECK(!pool.Free(live.ptr, live.id + 1));   // a use to come
  CHECK(!pool.Free(live.ptr, live.id ^ uint64_t{63} << 48));   // unused slot
  CHECK(!pool.Free(live.ptr, live.id ^ uint64_t{200} << 48));  // no such slot
  CHECK(!pool.Free(live.ptr, live.id + (uint64_t{1000} << 24)));  // no entry
  CHECK(Same(CheckCounted(pool), before));

  CHECK(Free(pool, live));
  CHECK(Free(second, foreign));
}

TEST(IdsAreNeverZeroAndNameTheirPool) {
  Pools& pools = NewPools(kLimit);
  for (uint32_t i = 0; i < 3; ++i) {
    Pool& pool = pools.Add(kLimit);
    for (int j = 0; j < 100; ++j) {
      const Allocation a = Get(pool, 0);
      CHECK(a.id != 0);
      CHECK_EQ(Pool::PoolOf(a.id), i);
      CHECK(a.ptr != nullptr);
      CHECK(Free(pool, a));
    }
  }
}

// ---------------------------------------------------------------------------
// Limits.

TEST(ThePoolIsUsableAfterItRanOut) {
  Pool& pool = NewPool(4 * kMiB);
  const Allocation a = Get(pool, 3 * kMiB);
  const OomReport report = GetRefused(pool, 2 * kMiB);
  CHECK_EQ(report.limit_bytes, 4 * kMiB);
  CHECK_EQ(report.bytes_in_use, 3 * kMiB);
  CHECK_EQ(report.mapped_bytes, 3 * kMiB);
  CHECK_EQ(pool.LastOomReport(), report.Text());
  CHECK_EQ(CheckCounted(pool).failures, 1);
  const Allocation b = Get(pool, kMiB);
  CHECK(Free(pool, a));
  const Allocation c = Get(pool, 2 * kMiB);
  CHECK(Free(pool, b));
  CHECK(Free(pool, c));
  CHECK_EQ(CheckCounted(pool).failures, 1);
  CHECK_EQ(CheckCounted(pool).bytes_in_use, 0);
}

TEST(APoolOfTwoTakesWhatTheOtherDoesNotUse) {
  Pools& pools = NewPools(8 * kMiB);
  Pool& first = pools.Add(8 * kMiB);
  Pool& second = pools.Add(8 * kMiB);
  const Allocation kept = Get(first, 256);
  CHECK(Free(first, Get(first, 5 * kMiB)));
  CHECK_EQ(CheckCounted(first).arena.mapped_bytes, 6 * kMiB);
  const Allocation taken = Get(second, 6 * kMiB);
  CHECK_EQ(CheckCounted(first).arena.mapped_bytes, 2 * kMiB);
  // And no more than that.
  const OomReport report = GetRefused(second, 256);
  CHECK_EQ(report.bytes_in_use, 6 * kMiB);
  CHECK(Free(first, kept));
  const Allocation last = Get(second, 2 * kMiB);  // from first's front cache
  CHECK_EQ(CheckCounted(first).arena.mapped_bytes, 0);
  CHECK(Free(second, taken));
  CHECK(Free(second, last));
}

TEST(ALimitAboveTheBudgetIsReportedAsTheBudget) {
  Pools& pools = NewPools(2 * kMiB);
  Pool& pool = pools.Add(8 * kMiB);
  CHECK_EQ(CheckCounted(pool).limit_bytes, 2 * kMiB);
  CHECK_EQ(GetRefused(pool, 3 * kMiB).limit_bytes, 2 * kMiB);
}

TEST(ARequestOfTheWholeLimitFits) {
  Pool& pool = NewPool(16 * kMiB);
  CHECK(Free(pool, Get(pool, 256)));
  CHECK(Free(pool, Get(pool, 16 * kMiB)));
  CHECK_EQ(GetRefused(pool, 16 * kMiB + 1).requested_bytes, 16 * kMiB + 1);
}

TEST(PreallocationMapsTheLimitAtTheFirstUse) {
  Pools& pools = NewPools(8 * kMiB);
  Pool& pool = pools.Add(8 * kMiB, true);
  CHECK_EQ(CheckCounted(pool).arena.mapped_bytes, 0);
  CHECK(Free(pool, Get(pool, 256)));
  CHECK_EQ(CheckCounted(pool).arena.mapped_bytes, 8 * kMiB);
}

}  // namespace
}  // namespace jax_bfc::testing
