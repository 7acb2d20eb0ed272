// What every MemorySource does, run on each; and what FakeSource adds.
#include <bit>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include "check.h"
#include "core/memory_source.h"
#include "core/size_class.h"
#include "fake_cuda.h"
#include "source/cuda.h"
#include "source/fake.h"
#include "source/host.h"

namespace jax_bfc {
namespace {

// `touch`: there is memory behind the addresses, zeroed when mapped again.
void CheckConforms(MemorySource& source, bool touch) {
  const size_t unit = source.granularity();
  CHECK(std::has_single_bit(unit) && unit >= kQuantum);
  CHECK(std::strlen(source.name()) > 0);
  CHECK(source.AvailableBytes() > 0);
  const auto use = [&](uintptr_t address, size_t bytes) {
    if (!touch) return;
    volatile char* first = reinterpret_cast<volatile char*>(address);
    CHECK_EQ(static_cast<int>(first[0]), 0);
    CHECK_EQ(static_cast<int>(first[bytes - 1]), 0);
    first[0] = 1;
    first[bytes - 1] = 1;
  };

  const uintptr_t a = source.Reserve(8 * unit);
  const uintptr_t b = source.Reserve(unit);
  CHECK(a != 0 && b != 0);
  CHECK(a % unit == 0 && b % unit == 0);
  CHECK(a % kMaxAlignment == 0 && b % kMaxAlignment == 0);
  CHECK(a + 8 * unit <= b || b + unit <= a);
  if (source.has_virtual_memory()) {
    // In any order, next to each other, and again after having been taken away.
    CHECK(source.Map(a + unit, 2 * unit));
    CHECK(source.Map(a, unit));
    CHECK(source.Map(a + 7 * unit, unit));
    use(a, 3 * unit);
    use(a + 7 * unit, unit);
    CHECK(source.Unmap(a + unit, 2 * unit));
    CHECK(source.Map(a + unit, unit));
    use(a + unit, unit);
    CHECK(source.Unmap(a, unit));
    CHECK(source.Map(a, unit));
    use(a, unit);
    CHECK(source.Unmap(a, unit));
    CHECK(source.Unmap(a + unit, unit));
    CHECK(source.Unmap(a + 7 * unit, unit));
  }
  source.Release(a, 8 * unit);
  source.Release(b, unit);
}

// More than any machine has: refused, without harm.
void CheckRefusesTheImpossible(MemorySource& source) {
  const size_t most = RoundDown(~size_t{0} / 2, source.granularity());
  CHECK_EQ(source.Reserve(most), 0);
  const uintptr_t base = source.Reserve(source.granularity());
  CHECK(base != 0);
  source.Release(base, source.granularity());
}

TEST(FakeSourceConforms) {
  FakeSource source;
  CheckConforms(source, /*touch=*/false);
  CHECK_EQ(source.mapped_bytes(), 0);
  CHECK_EQ(source.reserved_bytes(), 0);
}

TEST(FakeSourceWithoutVirtualMemoryConforms) {
  FakeSource source({.virtual_memory = false, .granularity = 4096});
  CheckConforms(source, /*touch=*/false);
  CHECK_EQ(source.mapped_bytes(), 0);
  CHECK_EQ(source.reserved_bytes(), 0);
  source.set_capacity(size_t{1} << 50);
  CheckRefusesTheImpossible(source);
}

TEST(HostSourceConforms) {
  for (const HugePages huge_pages : {HugePages::kAuto, HugePages::kOff}) {
    for (const bool prefault : {false, true}) {
      HostSource source({.huge_pages = huge_pages, .prefault = prefault});
      CheckConforms(source, /*touch=*/true);
      CheckRefusesTheImpossible(source);
    }
  }
}

// On a driver in memory; tests/gpu has them on a real one.
template <typename Source>
void CheckCudaConforms(size_t plain_alignment) {
  testing::FakeCuda fake({.plain_alignment = plain_alignment});
  SetCudaDriverForTest(testing::FakeCuda::driver());
  std::string why;
  const std::unique_ptr<CudaDevice> device = CudaDevice::Open(1, &why);
  CHECK(device != nullptr);
  Source source(device.get());
  CheckConforms(source, /*touch=*/false);
  CheckRefusesTheImpossible(source);
  CHECK(source.WaitIdle());
  fake.CheckClean();
  SetCudaDriverForTest(nullptr);
}
TEST(CudaVmmSourceConforms) { CheckCudaConforms<CudaVmmSource>(2 << 20); }
TEST(CudaSourceConforms) {
  CheckCudaConforms<CudaSource>(2 << 20);
  CheckCudaConforms<CudaSource>(512);
}
TEST(ACudaDeviceThatIsNotThereIsNamed) {
  testing::FakeCuda fake({.devices = 2});
  SetCudaDriverForTest(testing::FakeCuda::driver());
  std::string why;
  CHECK(CudaDevice::Open(2, &why) == nullptr);
  CHECK_EQ(why, "there is no CUDA device 2; this process sees 2");
  SetCudaDriverForTest(nullptr);
}

TEST(FakeAddressesStartAtTwoToTheFortiethAndAreUsedAgain) {
  FakeSource source({.granularity = 4096});
  CHECK_EQ(source.Reserve(4096), uintptr_t{1} << 40);
  CHECK_EQ(source.Reserve(2 << 20), (uintptr_t{1} << 40) + (2 << 20));
  CHECK_EQ(source.Reserve(4096), (uintptr_t{1} << 40) + (4 << 20));
  source.Release((uintptr_t{1} << 40) + (2 << 20), 2 << 20);
  CHECK_EQ(source.Reserve(4 << 20), (uintptr_t{1} << 40) + (6 << 20));
  CHECK_EQ(source.Reserve(2 << 20), (uintptr_t{1} << 40) + (2 << 20));
}

TEST(FakeSourceRefusesAsToldAndCounts) {
  FakeSource source({.granularity = 4096, .tells_available = true});
  const uintptr_t base = source.Reserve(1 << 20);
  source.RefuseNext(2);
  CHECK(!source.Map(base, 4096));
  CHECK(!source.Map(base, 4096));
  CHECK(source.Map(base, 4096));
  source.set_capacity(8192);
  CHECK_EQ(source.AvailableBytes(), 4096);
  CHECK(!source.Map(base + 4096, 8192));
  CHECK(source.Map(base + 4096, 4096));
  source.RefuseNextUnmap(1);
  CHECK(!source.Unmap(base, 4096));
  CHECK(source.Unmap(base, 4096));
  source.RefuseNextReserve(1);
  CHECK_EQ(source.Reserve(4096), 0);
  CHECK_EQ(source.calls().map, 5);
  CHECK_EQ(source.calls().unmap, 2);
  CHECK_EQ(source.calls().reserve, 2);
  CHECK_EQ(source.calls().refused, 5);
}

TEST(FakeSourceFindsEveryBrokenRule) {
  constexpr uintptr_t kBase = FakeSource::kBase;
  const auto error = [](auto&& misuse) {
    FakeSource source({.granularity = 4096, .keeps_errors = true});
    source.Reserve(16384);
    source.Map(kBase, 8192);
    CHECK_EQ(source.error(), "");
    misuse(source);
    return source.error();
  };
  using S = FakeSource&;
  const auto has = [](const std::string& text, const char* part) {
    return text.find(part) != std::string::npos;
  };
  CHECK(has(error([](S s) { s.Reserve(100); }), "bad size"));
  CHECK(has(error([](S s) { s.Map(kBase + 12288, 8192); }), "not reserved"));
  CHECK(has(error([](S s) { s.Map(kBase + 4096, 4096); }), "mapped already"));
  CHECK(has(error([](S s) { s.Map(kBase + 8192, 100); }), "granularity"));
  CHECK(has(error([](S s) { s.Unmap(kBase, 4096); }), "not exactly"));
  CHECK(has(error([](S s) { s.Unmap(kBase + 8192, 4096); }), "not exactly"));
  CHECK(has(error([](S s) { s.Release(kBase, 16384); }), "still mapped"));
  CHECK(has(error([](S s) { s.Release(kBase, 4096); }), "not a range"));
}

}  // namespace
}  // namespace jax_bfc
