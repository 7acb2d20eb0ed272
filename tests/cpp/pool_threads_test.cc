// Many threads and a pool: whose cache, whose count, and a stress.
#include <atomic>
#include <barrier>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "pool/pool.h"
#include "pool_fixture.h"

namespace jax_bfc::testing {
namespace {

// Runs `body(index)` on threads of its own; the first failure among them fails
// the test.
template <typename Body>
void OnThreads(int count, Body&& body) {
  std::mutex mutex;
  std::optional<Failure> first;
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) {
    threads.emplace_back([&, i] {
      try {
        body(i);
      } catch (const Failure& failure) {
        const std::lock_guard lock(mutex);
        if (!first) first = failure;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (first) throw *first;
}

TEST(AnotherThreadMayFree) {
  Pool& pool = NewPool();
  const Allocation a = Get(pool, 1000);
  OnThreads(1, [&](int) { CHECK(Free(pool, a)); });
  const PoolStats s = CheckCounted(pool);
  CHECK_EQ(s.bytes_in_use, 0);
  CHECK_EQ(s.peak_bytes_in_use, 1024);
  // Back in the cache of the thread that allocated it.
  CHECK_EQ(Get(pool, 1000).ptr, a.ptr);
  CHECK_EQ(CheckCounted(pool).cache_hits, 1);
}

TEST(OnlyOneOfManyThreadsFreesAnAllocation) {
  Pool& pool = NewPool();
  for (int round = 0; round < 50; ++round) {
    const Allocation a = Get(pool, 1000);
    std::atomic<int> freed{0};
    OnThreads(4, [&](int) { freed += Free(pool, a); });
    CHECK_EQ(freed.load(), 1);
    CHECK_EQ(CheckCounted(pool).bytes_in_use, 0);
  }
}

TEST(WhatAThreadLeftInItsCacheServesTheNext) {
  Pool& pool = NewPool();
  Allocation a{};
  OnThreads(1, [&](int) {
    a = Get(pool, 1000);
    CHECK(Free(pool, a));
  });
  CHECK_EQ(CheckCounted(pool).cached_bytes, 1024);
  OnThreads(1, [&](int) { CHECK_EQ(Get(pool, 1000).ptr, a.ptr); });
  CHECK_EQ(CheckCounted(pool).cache_hits, 1);
}

TEST(WhatAThreadLeftInItsCacheIsFlushedForOthers) {
  Pool& pool = NewPool(2 * kMiB);
  OnThreads(1, [&](int) { CHECK(Free(pool, Get(pool, 256))); });
  CHECK_EQ(CheckCounted(pool).cached_bytes, 256);
  CHECK(Free(pool, Get(pool, 2 * kMiB)));
  CHECK_EQ(CheckCounted(pool).failures, 0);
}

TEST(MoreThreadsThanSlotsShareThem) {
  constexpr int kThreads = static_cast<int>(kSlots) + 16;
  Pool& pool = NewPool();
  std::barrier all(kThreads);
  std::mutex mutex;
  std::set<void*> addresses;
  OnThreads(kThreads, [&](int) {
    const Allocation a = Get(pool, 1000);
    {
      const std::lock_guard lock(mutex);
      addresses.insert(a.ptr);
    }
    all.arrive_and_wait();
    CHECK(ThreadSlot() < kSlots);
    CHECK(Free(pool, a));
  });
  CHECK_EQ(addresses.size(), kThreads);
  const PoolStats s = CheckCounted(pool);
  CHECK_EQ(s.bytes_in_use, 0);
  CHECK_EQ(s.allocations, kThreads);
  CHECK(s.peak_bytes_in_use + kSlots * kMiB >= kThreads * 1024);
}

TEST(ThePeakOfSeveralThreadsIsWithinAQuantumForEach) {
  constexpr int kThreads = 4;
  constexpr size_t kEach = 3 * kMiB + 512 * kKiB;
  Pool& pool = NewPool();
  std::barrier all(kThreads);
  OnThreads(kThreads, [&](int) {
    const Allocation a = Get(pool, kEach);
    all.arrive_and_wait();  // the true peak
    CHECK(Free(pool, a));
  });
  const PoolStats s = CheckCounted(pool);
  CHECK_EQ(s.bytes_in_use, 0);
  CHECK(s.peak_bytes_in_use >= kThreads * (kEach - kMiB));
  CHECK(s.peak_bytes_in_use <= kThreads * (kEach + kMiB));
}

TEST(AThreadThatRunsOutGetsWhatAnotherFrees) {
  Pool& pool = NewPool(4 * kMiB);
  const Allocation a = Get(pool, 4 * kMiB);
  OnThreads(1, [&](int) { GetRefused(pool, 256); });
  OnThreads(1, [&](int) { CHECK(Free(pool, a)); });
  OnThreads(1, [&](int) { CHECK(Free(pool, Get(pool, 4 * kMiB))); });
  CHECK_EQ(CheckCounted(pool).failures, 1);
}

// A chunk with its id written at both ends.
struct Marked {
  Allocation allocation;
  size_t bytes;

  char* Last() const {
    return static_cast<char*>(allocation.ptr) + bytes - sizeof allocation.id;
  }
  void Mark() const {
    std::memcpy(Last(), &allocation.id, sizeof allocation.id);
    std::memcpy(allocation.ptr, &allocation.id, sizeof allocation.id);
  }
  void CheckMark() const {
    uint64_t first = 0;
    uint64_t last = 0;
    std::memcpy(&first, allocation.ptr, sizeof first);
    std::memcpy(&last, Last(), sizeof last);
    CHECK_EQ(first, allocation.id);
    CHECK_EQ(last, allocation.id);
  }
};

// What every thread of the stress does to two pools of one budget.
void Churn(const std::vector<Pool*>& pools, uint64_t seed, int operations,
           std::mutex& mutex, std::vector<Marked>& handed_over) {
  std::mt19937_64 random(seed);
  std::vector<Marked> live;
  const auto free = [&](const Marked& marked) {
    marked.CheckMark();
    CHECK(Free(*pools[Pool::PoolOf(marked.allocation.id)], marked.allocation));
    CHECK(!Free(*pools[Pool::PoolOf(marked.allocation.id)], marked.allocation));
  };
  for (int i = 0; i < operations; ++i) {
    if (live.size() > 12 || (!live.empty() && random() % 2 == 0)) {
      std::swap(live[random() % live.size()], live.back());
      if (random() % 8 == 0) {  // for another thread to free
        const std::lock_guard lock(mutex);
        std::swap(handed_over[random() % handed_over.size()], live.back());
        if (live.back().allocation.ptr == nullptr) live.pop_back();
      }
      if (live.empty()) continue;
      free(live.back());
      live.pop_back();
      continue;
    }
    // Now and then more than fits.
    const size_t bytes =
        16 + random() % (size_t{1} << (random() % 64 == 0 ? 23 : 14));
    const size_t alignment = size_t{1} << random() % 13;
    std::unique_ptr<OomReport> report;
    Allocation made;
    const bool fits = pools[random() % 2]->Allocate(
        {TestKernel(), bytes, alignment}, &made, &report);
    CHECK(fits == (report == nullptr));
    if (!fits) continue;
    CHECK_EQ(reinterpret_cast<uintptr_t>(made.ptr) % alignment, 0);
    live.push_back({made, bytes});
    live.back().Mark();
  }
  for (const Marked& marked : live) free(marked);
}

TEST(NothingIsLostOrSharedUnderStress) {
  constexpr int kThreads = 6;
  constexpr int kOperations = 6000;
  for (const uint64_t seed : Seeds({1, 2})) {
    Pools& both = NewPools(24 * kMiB);
    const std::vector<Pool*> pools = {&both.Add(24 * kMiB),
                                      &both.Add(16 * kMiB)};
    std::mutex mutex;
    std::vector<Marked> handed_over(16);
    std::atomic<int> running{kThreads};
    OnThreads(kThreads + 2, [&](int thread) {
      if (thread < kThreads) {
        try {
          Churn(pools, seed * 1000 + thread, kOperations, mutex, handed_over);
        } catch (...) {
          --running;
          throw;
        }
        --running;
        return;
      }
      while (running > 0) {  // two that look on, and take memory away
        for (Pool* pool : pools) {
          if (thread == kThreads) {
            pool->Trim();
            pool->ResetPeaks();
          } else {
            const PoolStats s = pool->Stats();
            CHECK(s.arena.mapped_bytes <= s.limit_bytes);
            CHECK(s.peak_bytes_in_use >= s.bytes_in_use);
            // Not below zero, which would be huge.
            CHECK(s.bytes_in_use <= 4 * s.limit_bytes);
            pool->Kernels();
            pool->LastOomReport();
          }
        }
        std::this_thread::yield();
      }
    });
    for (const Marked& marked : handed_over) {
      if (marked.allocation.ptr == nullptr) continue;
      marked.CheckMark();
      CHECK(
          Free(*pools[Pool::PoolOf(marked.allocation.id)], marked.allocation));
    }
    for (Pool* pool : pools) {
      CHECK_EQ(CheckCounted(*pool).bytes_in_use, 0);
      CHECK_EQ(CheckCounted(*pool).live, 0);
      pool->Trim();
      CHECK_EQ(CheckCounted(*pool).arena.mapped_bytes, 0);
    }
  }
}

}  // namespace
}  // namespace jax_bfc::testing
