// The hook that is told when a request does not fit.
#include "pool/oom_hook.h"

#include <optional>
#include <string>
#include <thread>

#include "check.h"
#include "pool_fixture.h"

namespace jax_bfc::testing {
namespace {

// What the hook under test does; set by one test at a time.
std::function<bool(const OomReport&)>& Action() {
  static std::function<bool(const OomReport&)> action;
  return action;
}

class Hooked {
 public:
  explicit Hooked(std::function<bool(const OomReport&)> action) {
    Action() = std::move(action);
    SetOomHook([](const OomReport& report) { return Action()(report); });
  }
  ~Hooked() { SetOomHook(nullptr); }
};

TEST(WhatTheHookFreesServesTheRequest) {
  Pool& pool = NewPool(4 * kMiB);
  const Allocation held = Get(pool, 3 * kMiB);
  int calls = 0;
  const Hooked hooked([&](const OomReport& report) {
    ++calls;
    CHECK_EQ(report.requested_bytes, 2 * kMiB);
    CHECK_EQ(report.bytes_in_use, 3 * kMiB);
    CHECK(Free(pool, held));
    pool.Trim();
    CHECK_EQ(CheckCounted(pool).bytes_in_use, 0);
    return true;
  });
  const Allocation made = Get(pool, 2 * kMiB);
  CHECK_EQ(calls, 1);
  const PoolStats stats = CheckCounted(pool);
  CHECK_EQ(stats.failures, 0);
  CHECK_EQ(stats.allocations, 2);
  CHECK_EQ(pool.Kernels()[0].calls, 2);
  CHECK_EQ(pool.LastOomReport(), "");
  CHECK(Free(pool, made));
}

TEST(ARequestThatStillDoesNotFitFailsOnceWithItsOwnReport) {
  Pool& pool = NewPool(4 * kMiB);
  int calls = 0;
  const Hooked hooked([&](const OomReport&) {
    // Inside, a request fails at once.
    CHECK_EQ(GetRefused(pool, 6 * kMiB).requested_bytes, 6 * kMiB);
    CHECK(!HasOomHook());
    ++calls;
    return true;
  });
  const OomReport report = GetRefused(pool, 5 * kMiB);
  CHECK_EQ(calls, 1);
  CHECK_EQ(report.requested_bytes, 5 * kMiB);
  CHECK_EQ(pool.LastOomReport(), report.Text());
  CHECK_EQ(CheckCounted(pool).failures, 2);
  CHECK(HasOomHook());
}

TEST(AHookThatHelpsNobodyIsNotFollowedByAnotherTry) {
  Pool& pool = NewPool(4 * kMiB);
  const Allocation held = Get(pool, 3 * kMiB);
  const Hooked hooked([&](const OomReport&) {
    CHECK(Free(pool, held));
    return false;
  });
  GetRefused(pool, 2 * kMiB);
  CHECK_EQ(CheckCounted(pool).failures, 1);
}

TEST(NothingIsCalledWhereTheDeviceMayNotBeWaitedFor) {
  Pool& pool = NewPool(4 * kMiB);
  bool called = false;
  const Hooked hooked([&](const OomReport&) { return called = true; });
  std::unique_ptr<OomReport> report;
  Allocation made;
  CHECK(!pool.Allocate({.kernel = TestKernel(),
                        .bytes = 5 * kMiB,
                        .alignment = 1,
                        .may_wait = false},
                       &made, &report));
  CHECK(!called);
}

TEST(TheHookHoldsNobodyUp) {
  Pool& pool = NewPool(4 * kMiB);
  const Hooked hooked([&](const OomReport&) {
    std::thread other([&] {
      CHECK(Free(pool, Get(pool, 1000)));
      pool.Trim();
      CheckCounted(pool);
    });
    other.join();
    return true;
  });
  GetRefused(pool, 5 * kMiB);
}

}  // namespace
}  // namespace jax_bfc::testing
