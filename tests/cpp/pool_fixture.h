// Pools for tests, and what must hold of every pool.
#ifndef JAX_BFC_TESTS_CPP_POOL_FIXTURE_H_
#define JAX_BFC_TESTS_CPP_POOL_FIXTURE_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "check.h"
#include "pool/budget.h"
#include "pool/kernel_table.h"
#include "pool/pool.h"

namespace jax_bfc::testing {

// Drops what is in a pool; whether it could be.
inline bool ResetPool(Pool& pool) {
  Pool::Everything all(&pool);
  all.LockAll();
  return all.Reset();
}

inline constexpr size_t kKiB = size_t{1} << 10;
inline constexpr size_t kMiB = size_t{1} << 20;

// With this limit a front cache holds 1 MiB, and a gauge's quantum is 1 MiB.
inline constexpr size_t kLimit = 64 * kMiB;

// Pools with one budget; each trims all of them when it runs out.
class Pools {
 public:
  explicit Pools(size_t budget_bytes) : budget_(budget_bytes) {}

  Pool& Add(size_t limit_bytes, bool preallocate = false) {
    PoolConfig config;
    config.limit_bytes = limit_bytes;
    config.preallocate = preallocate;
    config.huge_pages = HugePages::kOff;
    const auto index = static_cast<uint32_t>(pools_.size());
    pools_.push_back(std::make_unique<Pool>(
        index, "cpu:" + std::to_string(index), config, &budget_, [this] {
          for (const auto& pool : pools_) pool->Trim();
        }));
    return *pools_.back();
  }

 private:
  Budget budget_;
  std::vector<std::unique_ptr<Pool>> pools_;
};

// Never destroyed, as pools are not.
inline Pools& NewPools(size_t budget_bytes) {
  static auto* const all = new std::deque<Pools>;
  return all->emplace_back(budget_bytes);
}

inline Pool& NewPool(size_t limit_bytes = kLimit) {
  return NewPools(limit_bytes).Add(limit_bytes);
}

inline KernelId TestKernel() {
  static const KernelId kernel = InternKernel("test");
  return kernel;
}

// REQUIRES: it fits, or the test fails.
inline Allocation Get(Pool& pool, size_t bytes, size_t alignment = 1,
                      KernelId kernel = TestKernel()) {
  std::unique_ptr<OomReport> report;
  Allocation made;
  if (!pool.Allocate({kernel, bytes, alignment}, &made, &report)) {
    Fail(__FILE__, __LINE__, report->Text());
  }
  return made;
}

// REQUIRES: it does not fit, or the test fails.
inline OomReport GetRefused(Pool& pool, size_t bytes, size_t alignment = 1,
                            KernelId kernel = TestKernel()) {
  std::unique_ptr<OomReport> report;
  Allocation made;
  CHECK(!pool.Allocate({kernel, bytes, alignment}, &made, &report));
  return *report;
}

inline bool Free(Pool& pool, const Allocation& a) {
  return pool.Free(a.ptr, a.id);
}

// What must hold of a pool that no other thread uses right now.
inline PoolStats CheckCounted(Pool& pool) {
  const PoolStats s = pool.Stats();
  CHECK_EQ(s.bytes_in_use + s.cached_bytes + s.arena.free_bytes,
           s.arena.mapped_bytes);
  CHECK_EQ(s.bytes_in_use + s.cached_bytes, s.arena.bytes_in_use);
  CHECK(s.requested_bytes <= s.bytes_in_use);
  CHECK(s.peak_bytes_in_use >= s.bytes_in_use);
  CHECK(s.arena.mapped_bytes <= s.limit_bytes);
  CHECK(s.cache_hits <= s.allocations);
  size_t kernels_in_use = 0;
  uint64_t allocations = 0;
  uint64_t failures = 0;
  for (const KernelStats& kernel : pool.Kernels()) {
    kernels_in_use += kernel.bytes_in_use;
    allocations += kernel.allocations;
    failures += kernel.failures;
  }
  CHECK_EQ(kernels_in_use, s.bytes_in_use);
  CHECK_EQ(allocations, s.allocations);
  CHECK_EQ(failures, s.failures);
  return s;
}

// Whether two statistics are the same in every figure.
inline bool Same(const PoolStats& a, const PoolStats& b) {
  const auto figures = [](const PoolStats& s) {
    return std::make_tuple(s.limit_bytes, s.bytes_in_use, s.peak_bytes_in_use,
                           s.requested_bytes, s.cached_bytes,
                           s.largest_free_bytes, s.allocations, s.cache_hits,
                           s.failures, s.total_bytes, s.largest_bytes, s.live);
  };
  return a.arena == b.arena && figures(a) == figures(b);
}

}  // namespace jax_bfc::testing

#endif  // JAX_BFC_TESTS_CPP_POOL_FIXTURE_H_
