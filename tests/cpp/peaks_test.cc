// The exact peak of a block, and who held it.
#include "pool/peaks.h"

#include <thread>
#include <vector>

#include "check.h"
#include "pool_fixture.h"

namespace jax_bfc::testing {
namespace {

size_t HeldBy(const Peak& peak, KernelId kernel) {
  for (const auto& [id, bytes] : peak.by_kernel) {
    if (id == kernel) return bytes;
  }
  return 0;
}

TEST(APeakIsThatOfTheBlockAndNamesWhoHeldIt) {
  Pool& pool = NewPool();
  const KernelId a = InternKernel("peak_a");
  const KernelId b = InternKernel("peak_b");
  CHECK(Free(pool, Get(pool, 8 * kMiB, 1, a)));  // before the block
  const Allocation held = Get(pool, 1000, 1, a);
  const uint64_t block = pool.OpenPeak();
  CHECK_EQ(pool.ReadPeak(block).bytes, 1024);
  const Allocation first = Get(pool, 2048, 1, b);
  CHECK_EQ(pool.ReadPeak(block).bytes, 3072);  // while it rises
  CHECK(Free(pool, Get(pool, 512, 1, a)));
  CHECK(Free(pool, first));
  CHECK(Free(pool, Get(pool, 2048, 1, a)));  // less than the peak
  const Peak peak = pool.ReadPeak(block);
  CHECK_EQ(peak.bytes, 3584);
  CHECK_EQ(HeldBy(peak, a), 1536);
  CHECK_EQ(HeldBy(peak, b), 2048);
  CHECK_EQ(peak.by_kernel.size(), 2);
  pool.ClosePeak(block);
  CHECK(Free(pool, held));
  CHECK_EQ(pool.ReadPeak(block).bytes, 0);
  CHECK_EQ(CheckCounted(pool).peak_bytes_in_use, 8 * kMiB);
}

TEST(BlocksNestAndOverlap) {
  Pool& pool = NewPool();
  const uint64_t outer = pool.OpenPeak();
  CHECK(Free(pool, Get(pool, 4096)));
  const uint64_t inner = pool.OpenPeak();
  CHECK(Free(pool, Get(pool, 1024)));
  CHECK_EQ(pool.ReadPeak(inner).bytes, 1024);
  pool.ResetPeaks();  // is of the gauges
  pool.ClosePeak(outer);
  CHECK(Free(pool, Get(pool, 2048)));
  CHECK_EQ(pool.ReadPeak(inner).bytes, 2048);
  pool.ClosePeak(inner);
  CHECK(Free(pool, Get(pool, 8192)));
  const uint64_t next = pool.OpenPeak();
  CHECK_EQ(pool.ReadPeak(next).bytes, 0);
  CHECK(pool.ReadPeak(next).by_kernel.empty());
  pool.ClosePeak(next);
}

TEST(APeakIsExactForManyThreads) {
  Pool& pool = NewPool();
  const uint64_t block = pool.OpenPeak();
  constexpr int kThreads = 4;
  constexpr size_t kBytes = 8 * kKiB;  // far below a gauge's quantum
  std::atomic<int> holding{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      const KernelId kernel = InternKernel("peak_thread_" + std::to_string(i));
      const Allocation a = Get(pool, kBytes, 1, kernel);
      ++holding;
      while (holding < kThreads) std::this_thread::yield();
      CHECK(Free(pool, a));
      for (int j = 0; j < 1000; ++j) {
        CHECK(Free(pool, Get(pool, kBytes, 1, kernel)));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const Peak peak = pool.ReadPeak(block);
  CHECK_EQ(peak.bytes, kThreads * kBytes);
  CHECK_EQ(peak.by_kernel.size(), kThreads);
  pool.ClosePeak(block);
}

}  // namespace
}  // namespace jax_bfc::testing
