// The report of a request that does not fit, to the letter.
#include "pool/oom_report.h"

#include <string>
#include <vector>

#include "check.h"
#include "pool_fixture.h"

namespace jax_bfc::testing {
namespace {

TEST(NumbersHaveACommaEveryThreeDigits) {
  CHECK_EQ(WithCommas(0), "0");
  CHECK_EQ(WithCommas(999), "999");
  CHECK_EQ(WithCommas(1000), "1,000");
  CHECK_EQ(WithCommas(123456), "123,456");
  CHECK_EQ(WithCommas(1234567), "1,234,567");
  CHECK_EQ(WithCommas(~size_t{0}), "18,446,744,073,709,551,615");
}

TEST(ARequestAboveTheLimitIsToldToRaiseIt) {
  const OomReport report{.kernel = "sort",
                         .device = "cpu:0",
                         .requested_bytes = 4096,
                         .alignment = 256,
                         .limit_bytes = 2048,
                         .mapped_bytes = 1024,
                         .bytes_in_use = 0,
                         .largest_free_bytes = 1024,
                         .device_available_bytes = 1234567,
                         .holders = {}};
  CHECK_EQ(report.Text(),
           "jax_bfc: kernel 'sort' on cpu:0 asked for 4,096 bytes of scratch; "
           "0 of 2,048 in use, 1,024 mapped, largest free chunk 1,024; the "
           "device has 1,234,567 available. The request is larger than the "
           "limit: raise limit_bytes or memory_fraction in "
           "jax_bfc.configure().");
}

TEST(ALimitTooSmallForAllIsToldSoWithTheHolders) {
  const OomReport report{.kernel = "scan",
                         .device = "cpu:1",
                         .requested_bytes = 1024,
                         .alignment = 4096,
                         .limit_bytes = 2048,
                         .mapped_bytes = 2048,
                         .bytes_in_use = 1280,
                         .largest_free_bytes = 768,
                         .device_available_bytes = 0,
                         .holders = {{"sort", 1024}, {"solve:rhs", 256}}};
  CHECK_EQ(report.Text(),
           "jax_bfc: kernel 'scan' on cpu:1 asked for 1,024 bytes of scratch "
           "aligned to 4,096; 1,280 of 2,048 in use, 2,048 mapped, largest "
           "free chunk 768; the device has 0 available. Held by 'sort' 1,024, "
           "'solve:rhs' 256. The limit is too small for what is in use "
           "together: raise limit_bytes or memory_fraction in "
           "jax_bfc.configure(), or run fewer kernels at once.");
}

TEST(MemoryInPiecesIsToldSo) {
  const OomReport report{.kernel = "scan",
                         .device = "cpu:0",
                         .requested_bytes = 1024,
                         .alignment = 256,
                         .limit_bytes = 4096,
                         .mapped_bytes = 4096,
                         .bytes_in_use = 512,
                         .largest_free_bytes = 768,
                         .device_available_bytes = 5,
                         .holders = {{"sort", 512}}};
  CHECK_EQ(report.Text(),
           "jax_bfc: kernel 'scan' on cpu:0 asked for 1,024 bytes of scratch; "
           "512 of 4,096 in use, 4,096 mapped, largest free chunk 768; the "
           "device has 5 available. Held by 'sort' 512. The limit would allow "
           "it, but the memory is in pieces, shared with another device's "
           "pool, or refused by the system: see jax_bfc.memory_stats().");
}

TEST(APoolFillsInItsReport) {
  Pool& pool = NewPool(4 * kMiB);
  const Allocation a = Get(pool, 3 * kMiB, 1, InternKernel("holder"));
  OomReport report = GetRefused(pool, 2 * kMiB, 1, InternKernel("asker"));
  report.device_available_bytes = 7;
  CHECK_EQ(report.Text(),
           "jax_bfc: kernel 'asker' on cpu:0 asked for 2,097,152 bytes of "
           "scratch; 3,145,728 of 4,194,304 in use, 3,145,728 mapped, largest "
           "free chunk 0; the device has 7 available. Held by 'holder' "
           "3,145,728. The limit is too small for what is in use together: "
           "raise limit_bytes or memory_fraction in jax_bfc.configure(), or "
           "run fewer kernels at once.");
  CHECK(Free(pool, a));
}

TEST(TheFiveKernelsThatHoldMostAreNamedMostFirst) {
  Pool& pool = NewPool(4 * kMiB);
  const std::vector<size_t> sizes = {512, 2048, 256, 1024, 4096, 768, 2048};
  std::vector<Allocation> live;
  for (size_t i = 0; i < sizes.size(); ++i) {
    live.push_back(
        Get(pool, sizes[i], 1, InternKernel("holder_" + std::to_string(i))));
  }
  const OomReport report = GetRefused(pool, 5 * kMiB);
  const std::vector<std::pair<std::string, size_t>> expected = {
      {"holder_4", 4096},
      {"holder_1", 2048},
      {"holder_6", 2048},
      {"holder_3", 1024},
      {"holder_5", 768}};
  CHECK(report.holders == expected);
  for (const Allocation& a : live) CHECK(Free(pool, a));
}

}  // namespace
}  // namespace jax_bfc::testing
