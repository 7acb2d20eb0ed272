// The pools of the process: made when used, configured and reset as a whole.
#include "pool/registry.h"

#include <sys/wait.h>
#include <unistd.h>

#include <optional>
#include <string>

#include "check.h"
#include "pool_fixture.h"

namespace jax_bfc::testing {
namespace {

DeviceConfig Limit(size_t limit_bytes) {
  DeviceConfig config;
  config.pool.limit_bytes = limit_bytes;
  config.pool.huge_pages = HugePages::kOff;
  return config;
}

PoolConfig ConfigOf(uint32_t index) {
  std::string why;
  return *ConfigOfDevice(index, &why);
}

// As in a new process, but for the pools that exist.
void StartAnew() {
  CHECK_EQ(Reset(std::nullopt).value_or(""), "");
  CHECK_EQ(Configure(std::nullopt, Limit(kLimit)).value_or(""), "");
}

TEST(PoolsAreMadeWhenUsed) {
  StartAnew();
  CHECK(FindPool(100) == nullptr);
  CHECK(FindPool(kMaxHostPools) == nullptr);
  const size_t before = AllPools().size();
  CHECK_EQ(HostPool(100).device(), "cpu:100");
  CHECK(FindPool(100) == &HostPool(100));
  CHECK_EQ(AllPools().size(), before + 1);
}

TEST(AllocationIdsNameTheirPool) {
  StartAnew();
  const Allocation a = Get(HostPool(101), 256);
  CHECK(FindPool(Pool::PoolOf(a.id)) == &HostPool(101));
  CHECK(Free(HostPool(101), a));
}

TEST(ALimitBelowWhatIsInUseIsRefused) {
  StartAnew();
  Pool& pool = HostPool(0);
  const Allocation a = Get(pool, 8 * kMiB);
  CHECK(Free(pool, Get(pool, 2 * kMiB)));
  CHECK_EQ(CheckCounted(pool).arena.mapped_bytes, 12 * kMiB);
  for (const std::optional<uint32_t> ordinal :
       {std::optional<uint32_t>(0), std::optional<uint32_t>()}) {
    CHECK_EQ(Configure(ordinal, Limit(8 * kMiB - 1)).value_or("accepted"),
             "limit_bytes=8,388,607 is below the 8,388,608 bytes that scratch "
             "in use keeps mapped; it must be at least that many. Nothing was "
             "changed.");
    CHECK_EQ(ConfigOf(0).limit_bytes, kLimit);
    CHECK_EQ(ConfigOf(1).limit_bytes, kLimit);
    CHECK_EQ(HostBudgetBytes(), kLimit);
    CHECK_EQ(CheckCounted(pool).arena.mapped_bytes, 12 * kMiB);
  }
  // Just enough, once what is free has been given back.
  CHECK_EQ(Configure(0, Limit(8 * kMiB)).value_or(""), "");
  CHECK_EQ(CheckCounted(pool).arena.mapped_bytes, 8 * kMiB);
  GetRefused(pool, 256);
  CHECK(Free(pool, a));
}

TEST(ALimitOfOneDeviceIsItsOwn) {
  StartAnew();
  CHECK_EQ(Configure(1, Limit(4 * kMiB)).value_or(""), "");
  CHECK_EQ(ConfigOf(1).limit_bytes, 4 * kMiB);
  CHECK_EQ(ConfigOf(0).limit_bytes, kLimit);
  CHECK_EQ(HostBudgetBytes(), kLimit);
  GetRefused(HostPool(1), 5 * kMiB);
  CHECK(Free(HostPool(0), Get(HostPool(0), 5 * kMiB)));
}

TEST(ALimitOfAllIsTheBudgetAndReplacesEachOne) {
  StartAnew();
  CHECK_EQ(Configure(1, Limit(4 * kMiB)).value_or(""), "");
  CHECK_EQ(Configure(std::nullopt, Limit(8 * kMiB)).value_or(""), "");
  CHECK_EQ(ConfigOf(1).limit_bytes, 8 * kMiB);
  CHECK_EQ(HostBudgetBytes(), 8 * kMiB);
  const Allocation a = Get(HostPool(0), 6 * kMiB);
  GetRefused(HostPool(1), 3 * kMiB);
  const Allocation b = Get(HostPool(1), 2 * kMiB);
  CHECK(Free(HostPool(0), a));
  CHECK(Free(HostPool(1), b));
}

TEST(OnePoolsFreeMemoryIsTrimmedForAnother) {
  StartAnew();
  CHECK_EQ(Configure(std::nullopt, Limit(8 * kMiB)).value_or(""), "");
  CHECK(Free(HostPool(0), Get(HostPool(0), 8 * kMiB)));
  CHECK_EQ(CheckCounted(HostPool(0)).arena.mapped_bytes, 8 * kMiB);
  CHECK(Free(HostPool(1), Get(HostPool(1), 8 * kMiB)));
  CHECK_EQ(CheckCounted(HostPool(0)).arena.mapped_bytes, 0);
}

TEST(ResetWhileInUseIsRefused) {
  StartAnew();
  const Allocation a = Get(HostPool(0), 256);
  const Allocation b = Get(HostPool(1), 256);
  const PoolStats before = CheckCounted(HostPool(0));
  CHECK_EQ(Reset(std::nullopt).value_or("accepted"),
           "jax_bfc.reset() while scratch is in use: 2 allocations are not "
           "yet freed. Wait for the programs that use them "
           "(jax.block_until_ready), then reset. Nothing was changed.");
  CHECK(Reset(0).has_value());
  CHECK(Same(CheckCounted(HostPool(0)), before));
  CHECK(Free(HostPool(0), a));
  CHECK_EQ(Reset(0).value_or(""), "");  // another's do not matter
  CHECK(Free(HostPool(1), b));
}

TEST(ResetDropsMemoryAndStatisticsNotTheConfiguration) {
  StartAnew();
  CHECK_EQ(Configure(0, Limit(4 * kMiB)).value_or(""), "");
  Pool& pool = HostPool(0);
  const Allocation a = Get(pool, 1000);
  GetRefused(pool, 5 * kMiB);
  CHECK(Free(pool, a));
  CHECK_EQ(Reset(0).value_or(""), "");
  CHECK(&HostPool(0) == &pool);
  PoolStats fresh;
  fresh.limit_bytes = 4 * kMiB;
  CHECK(Same(CheckCounted(pool), fresh));
  CHECK_EQ(pool.LastOomReport(), "");
  CHECK_EQ(ConfigOf(0).limit_bytes, 4 * kMiB);
  // An id from before is still no one's.
  const Allocation b = Get(pool, 1000);
  CHECK(!Free(pool, a));
  CHECK(Free(pool, b));
}

TEST(AForkedChildStartsWithPoolsOfItsOwn) {
  StartAnew();
  CHECK_EQ(Configure(1, Limit(4 * kMiB)).value_or(""), "");
  const Allocation a = Get(HostPool(0), 256);
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    bool good = AllPools().empty() && FindPool(0) == nullptr;
    good = good && ConfigOf(0).limit_bytes == kLimit;
    good = good && ConfigOf(1).limit_bytes == 4 * kMiB;
    good = good && HostBudgetBytes() == kLimit;
    good = good && !Free(HostPool(0), a);  // the parent's
    const Allocation b = Get(HostPool(0), kMiB);
    good = good && HostPool(0).Stats().live == 1;
    good = good && Free(HostPool(0), b);
    _exit(good ? 0 : 1);
  }
  int status = 0;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK_EQ(status, 0);
  CHECK_EQ(HostPool(0).Stats().live, 1);
  CHECK(Free(HostPool(0), a));
}

}  // namespace
}  // namespace jax_bfc::testing
