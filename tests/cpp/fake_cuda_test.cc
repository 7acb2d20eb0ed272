// What a FakeCuda holds its callers to: memory, leaks, and how calls are made
// to fail. The rest is in fake_cuda_streams_test.cc.
#include "fake_cuda.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "source/cuda_driver.h"

namespace jax_bfc::testing {
namespace {

constexpr size_t kUnit = FakeCudaMemory::kGranularity;
constexpr uint64_t kBase = FakeCudaMemory::kReserveBase;
constexpr size_t kTotal = size_t{1} << 30;

const CudaDriver& driver = *FakeCuda::driver();

cuda::MemoryHandle Create(size_t bytes, int device = 0) {
  cuda::AllocationProperties properties;
  properties.location.id = device;
  cuda::MemoryHandle handle = 0;
  driver.MemCreate(&handle, bytes, &properties, 0);
  return handle;
}

cuda::Address Reserve(size_t bytes, size_t alignment = 0) {
  cuda::Address address = 0;
  driver.MemAddressReserve(&address, bytes, alignment, 0, 0);
  return address;
}

void Map(cuda::Address address, size_t bytes, int device = 0) {
  const cuda::MemoryHandle handle = Create(bytes, device);
  CHECK_EQ(driver.MemMap(address, bytes, 0, handle, 0), cuda::kSuccess);
  CHECK_EQ(driver.MemRelease(handle), cuda::kSuccess);
}

cuda::Address Alloc(size_t bytes) {
  cuda::Address address = 0;
  driver.MemAlloc(&address, bytes);
  return address;
}

TEST(EveryFunctionOfTheDriverIsThere) {
#define CHECK_MEMBER(member, ...) CHECK(driver.member != nullptr);
  JAX_BFC_CUDA_FUNCTIONS(CHECK_MEMBER)
#undef CHECK_MEMBER
}

TEST(WithoutAFakeTheDriverHasShutDown) {
  int count = 0;
  CHECK_EQ(driver.DeviceGetCount(&count), kCudaDeinitialized);
  {
    FakeCuda outer({.devices = 3});
    {
      FakeCuda inner;
      CHECK_EQ(driver.DeviceGetCount(&count), cuda::kSuccess);
      CHECK_EQ(count, 2);
    }
    CHECK_EQ(driver.DeviceGetCount(&count), cuda::kSuccess);
    CHECK_EQ(count, 3);
  }
  CHECK_EQ(driver.DeviceGetCount(&count), kCudaDeinitialized);
}

TEST(DevicesAreAsTold) {
  FakeCuda fake(
      {.devices = 1, .total_bytes = 4 * kUnit, .virtual_memory = false});
  int value = 0;
  size_t bytes = 0;
  CHECK_EQ(driver.DeviceGet(&value, 1), kCudaInvalidDevice);
  CHECK_EQ(driver.DeviceGet(&value, 0), cuda::kSuccess);
  CHECK_EQ(driver.DeviceTotalMem(&bytes, 0), cuda::kSuccess);
  CHECK_EQ(bytes, 4 * kUnit);
  value = 1;
  CHECK_EQ(driver.DeviceGetAttribute(&value, cuda::kAttributeVirtualMemory, 0),
           0);
  CHECK_EQ(value, 0);
  cuda::Address address = 0;
  CHECK_EQ(driver.MemAddressReserve(&address, kUnit, 0, 0, 0),
           kCudaNotSupported);
  const char* name = nullptr;
  CHECK_EQ(driver.GetErrorName(cuda::kOutOfMemory, &name), cuda::kSuccess);
  CHECK_EQ(name, std::string("CUDA_ERROR_OUT_OF_MEMORY"));
  CHECK_EQ(driver.GetErrorName(12345, &name), kCudaInvalidValue);
  CHECK(name == nullptr);
  fake.CheckClean();
}

TEST(AddressesStartAtTwoToTheFortiethAlignedAndAreUsedAgain) {
  FakeCuda fake;
  CHECK_EQ(Reserve(kUnit), kBase);
  CHECK_EQ(Reserve(2 * kUnit, 8 * kUnit), kBase + 8 * kUnit);
  CHECK_EQ(Reserve(kUnit, 512), kBase + kUnit);
  CHECK_EQ(fake.reserved_bytes(), 4 * kUnit);
  CHECK_EQ(driver.MemAddressFree(kBase, kUnit), cuda::kSuccess);
  CHECK_EQ(Reserve(kUnit), kBase);
  CHECK_EQ(driver.MemAddressFree(kBase, kUnit), cuda::kSuccess);
  CHECK_EQ(driver.MemAddressFree(kBase + kUnit, kUnit), cuda::kSuccess);
  CHECK_EQ(driver.MemAddressFree(kBase + 8 * kUnit, 2 * kUnit), cuda::kSuccess);
  fake.CheckClean();
  cuda::Address address = 0;
  CHECK_EQ(driver.MemAddressReserve(&address, size_t{1} << 47, 0, 0, 0),
           cuda::kOutOfMemory);
  fake.CheckClean();
}

TEST(RangesHaveAGoodSizeAlignmentAndEnd) {
  FakeCuda fake;
  Reserve(0);
  fake.CheckViolated("MemAddressReserve(0x0, 0): not of the granularity");
  Reserve(kUnit + 4096);
  fake.CheckViolated("not of the granularity");
  Reserve(kUnit, 3 * kUnit);
  fake.CheckViolated("a bad alignment");
  const cuda::Address range = Reserve(2 * kUnit);
  CHECK_EQ(driver.MemAddressFree(range, kUnit), kCudaInvalidValue);
  fake.CheckViolated("not a range that was reserved");
  Map(range, kUnit);
  CHECK_EQ(driver.MemAddressFree(range, 2 * kUnit), kCudaInvalidValue);
  fake.CheckViolated("still mapped");
}

TEST(MemoryIsInUseUntilReleasedAndUnmapped) {
  FakeCuda fake;
  const cuda::Address range = Reserve(4 * kUnit);
  const cuda::MemoryHandle handle = Create(2 * kUnit);
  CHECK_EQ(fake.FreeBytes(0), kTotal - 2 * kUnit);
  CHECK_EQ(fake.FreeBytes(1), kTotal);
  CHECK_EQ(driver.MemMap(range, 2 * kUnit, 0, handle, 0), cuda::kSuccess);
  CHECK_EQ(driver.MemRelease(handle), cuda::kSuccess);
  CHECK_EQ(fake.FreeBytes(0), kTotal - 2 * kUnit);
  CHECK_EQ(fake.mapped_bytes(), 2 * kUnit);
  CHECK_EQ(driver.MemUnmap(range, 2 * kUnit), cuda::kSuccess);
  CHECK_EQ(fake.FreeBytes(0), kTotal);
  CHECK_EQ(fake.mapped_bytes(), 0);
  // The other way round.
  const cuda::MemoryHandle other = Create(kUnit, 1);
  CHECK_EQ(driver.MemMap(range, kUnit, 0, other, 0), cuda::kSuccess);
  CHECK_EQ(driver.MemUnmap(range, kUnit), cuda::kSuccess);
  CHECK_EQ(fake.FreeBytes(1), kTotal - kUnit);
  CHECK_EQ(driver.MemRelease(other), cuda::kSuccess);
  CHECK_EQ(fake.FreeBytes(1), kTotal);
  CHECK_EQ(driver.MemAddressFree(range, 4 * kUnit), cuda::kSuccess);
  fake.CheckClean();
}

TEST(ADeviceGivesNoMoreThanItHas) {
  FakeCuda fake({.devices = 1, .total_bytes = 4 * kUnit});
  const FakeCuda::CurrentContext current(fake, 0);
  cuda::MemoryHandle handle = 0;
  cuda::AllocationProperties properties;
  CHECK_EQ(driver.MemCreate(&handle, 8 * kUnit, &properties, 0),
           cuda::kOutOfMemory);
  CHECK_EQ(driver.MemCreate(&handle, 2 * kUnit, &properties, 0), 0);
  fake.Occupy(0, kUnit);
  size_t free = 0, total = 0;
  CHECK_EQ(driver.MemGetInfo(&free, &total), cuda::kSuccess);
  CHECK_EQ(free, kUnit);
  CHECK_EQ(total, 4 * kUnit);
  cuda::Address address = 0;
  CHECK_EQ(driver.MemAlloc(&address, kUnit + 1), cuda::kOutOfMemory);
  CHECK_EQ(driver.MemAlloc(&address, kUnit - 1), cuda::kSuccess);
  CHECK_EQ(fake.FreeBytes(), 0);
  CHECK_EQ(driver.MemFree(address), cuda::kSuccess);
  CHECK_EQ(driver.MemRelease(handle), cuda::kSuccess);
  fake.Occupy(0, -static_cast<int64_t>(kUnit));
  CHECK_EQ(fake.FreeBytes(), 4 * kUnit);
  fake.CheckClean();
}

TEST(HandlesAreOfAKnownKindAndReleasedOnce) {
  FakeCuda fake;
  Create(kUnit / 2);
  fake.CheckViolated("not of the granularity");
  Create(kUnit, /*device=*/2);
  fake.CheckViolated("bad properties");
  const cuda::MemoryHandle handle = Create(kUnit);
  CHECK_EQ(driver.MemRelease(handle), cuda::kSuccess);
  CHECK_EQ(driver.MemRelease(handle), kCudaInvalidValue);
  fake.CheckViolated("released before");
}

TEST(MapTakesAWholeLiveHandleIntoFreeReservedSpace) {
  FakeCuda fake;
  const cuda::Address range = Reserve(4 * kUnit);
  const cuda::MemoryHandle handle = Create(2 * kUnit);
  const auto map = [&](cuda::Address address, size_t bytes, size_t offset) {
    CHECK_EQ(driver.MemMap(address, bytes, offset, handle, 0),
             kCudaInvalidValue);
  };
  map(range + 4096, 2 * kUnit, 0);
  fake.CheckViolated("not of the granularity");
  map(range + 3 * kUnit, 2 * kUnit, 0);
  fake.CheckViolated("not reserved");
  map(range - kUnit, 2 * kUnit, 0);
  fake.CheckViolated("not reserved");
  map(range, kUnit, 0);
  fake.CheckViolated("not the whole handle");
  map(range, 2 * kUnit, kUnit);
  fake.CheckViolated("not the whole handle");
  Map(range + kUnit, kUnit);
  map(range, 2 * kUnit, 0);
  fake.CheckViolated("mapped already");
  CHECK_EQ(driver.MemRelease(handle), cuda::kSuccess);
  map(range + 2 * kUnit, 2 * kUnit, 0);
  fake.CheckViolated("a released one");
}

TEST(UnmapAndSetAccessTakeWholeMappings) {
  FakeCuda fake;
  const cuda::Address range = Reserve(8 * kUnit);
  Map(range, 2 * kUnit);
  Map(range + 2 * kUnit, kUnit);
  Map(range + 4 * kUnit, kUnit);
  const cuda::AccessDescription access;
  const auto broken = [&](cuda::Address address, size_t bytes) {
    CHECK_EQ(driver.MemUnmap(address, bytes), kCudaInvalidValue);
    fake.CheckViolated("not exactly what was mapped");
    CHECK_EQ(driver.MemSetAccess(address, bytes, &access, 1),
             kCudaInvalidValue);
    fake.CheckViolated("not exactly what was mapped");
  };
  broken(range, kUnit);              // a part
  broken(range + kUnit, kUnit);      // a part
  broken(range + kUnit, 2 * kUnit);  // a part and a whole
  broken(range, 5 * kUnit);          // a gap
  broken(range + 5 * kUnit, kUnit);  // nothing
  broken(range, 0);
  cuda::AccessDescription bad;
  bad.location.id = 2;
  CHECK_EQ(driver.MemSetAccess(range, 2 * kUnit, &bad, 1), kCudaInvalidValue);
  fake.CheckViolated("bad access description");
  CHECK_EQ(driver.MemSetAccess(range, 3 * kUnit, &access, 1), cuda::kSuccess);
  CHECK_EQ(driver.MemUnmap(range, 3 * kUnit), cuda::kSuccess);
  CHECK_EQ(driver.MemUnmap(range + 4 * kUnit, kUnit), cuda::kSuccess);
  CHECK_EQ(driver.MemAddressFree(range, 8 * kUnit), cuda::kSuccess);
  fake.CheckClean();
}

TEST(PlainMemoryIsAlignedAsToldAndFreedOnce) {
  for (const size_t alignment : {size_t{512}, kUnit}) {
    FakeCuda fake({.plain_alignment = alignment});
    const FakeCuda::CurrentContext current(fake, 1);
    const cuda::Address first = Alloc(3 * kUnit);
    const cuda::Address second = Alloc(100);
    CHECK_EQ(first, FakeCudaMemory::kPlainBase + alignment);
    CHECK_EQ(second, first + 3 * kUnit);
    CHECK_EQ(fake.FreeBytes(1), kTotal - 3 * kUnit - 512);
    CHECK_EQ(fake.FreeBytes(0), kTotal);
    CHECK_EQ(driver.MemFree(first + 512), kCudaInvalidValue);
    fake.CheckViolated("not what MemAlloc gave");
    CHECK_EQ(driver.MemFree(first), cuda::kSuccess);
    CHECK_EQ(driver.MemFree(first), kCudaInvalidValue);
    fake.CheckViolated("not what MemAlloc gave");
    CHECK_EQ(driver.MemFree(second), cuda::kSuccess);
    CHECK_EQ(driver.MemFree(0), cuda::kSuccess);
    fake.CheckClean();
    Alloc(0);
    fake.CheckViolated("no bytes");
  }
}

TEST(LeaksAreFoundByKind) {
  FakeCuda fake;
  const FakeCuda::CurrentContext current(fake, 0);
  const cuda::Address range = Reserve(4 * kUnit);
  Map(range, 2 * kUnit);
  Create(kUnit);
  Alloc(1024);
  std::thread([&] {
    int mode = cuda::kCaptureModeRelaxed;
    driver.ThreadExchangeStreamCaptureMode(&mode);
    driver.CtxPushCurrent(fake.context(1));
  }).join();
  std::string text;
  for (const std::string& leak : fake.Leaks()) text += leak + "\n";
  for (const char* part :
       {"handle not released", "mapping at 0x10000000000, 4194304 bytes",
        "range reserved at 0x10000000000, 8388608 bytes", "plain memory at",
        "has 1 contexts not popped", "is in capture mode 2"}) {
    if (text.find(part) == std::string::npos) CHECK_EQ(text, part);
  }
  CHECK_EQ(fake.Leaks().size(), 6);
  fake.CheckNoViolations();
  std::string failure;
  try {
    fake.CheckClean();
  } catch (const Failure& caught) {
    failure = caught.text;
  }
  CHECK(failure.find("fake_cuda_test.cc") != std::string::npos);
  CHECK(failure.find("plain memory at") != std::string::npos);
}

TEST(AForkedChildDoesNotCallTheDriver) {
  FakeCuda fake;
  const pid_t child = fork();
  if (child == 0) {
    int count = 0;
    const bool refused = driver.DeviceGetCount(&count) == cuda::kNotInitialized;
    _exit(refused && fake.violations().size() == 1 ? 0 : 1);
  }
  int status = -1;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK_EQ(status, 0);
  fake.CheckClean();
}

TEST(CallsAreCountedByFunction) {
  FakeCuda fake;
  const cuda::Address range = Reserve(2 * kUnit);
  Map(range, kUnit);
  Map(range + kUnit, kUnit);
  CHECK_EQ(fake.calls("MemMap"), 2);
  CHECK_EQ(fake.calls("MemAddressReserve"), 1);
  CHECK_EQ(fake.calls("MemAlloc"), 0);
  CHECK_EQ(fake.calls(), 7);
  bool failed = false;
  try {
    fake.calls("cuMemMap");
  } catch (const Failure&) {
    failed = true;
  }
  CHECK(failed);
}

TEST(TheNthCallFailsAndDoesNothing) {
  FakeCuda fake;
  fake.FailCall(2, cuda::kOutOfMemory);
  CHECK(Reserve(kUnit) != 0);
  CHECK_EQ(Reserve(kUnit), 0);
  CHECK(Reserve(kUnit) != 0);
  CHECK_EQ(fake.failed_calls(), 1);
  CHECK_EQ(fake.calls(), 3);
  CHECK_EQ(fake.reserved_bytes(), 2 * kUnit);
  fake.FailCall(2, cuda::kOutOfMemory, "MemCreate");
  CHECK(Create(kUnit) != 0);
  CHECK(Reserve(kUnit) != 0);
  CHECK_EQ(Create(kUnit), 0);
  CHECK(Create(kUnit) != 0);
  fake.FailFrom(2, kCudaIllegalAddress);
  int count = 0;
  CHECK_EQ(driver.DeviceGetCount(&count), cuda::kSuccess);
  CHECK_EQ(driver.DeviceGetCount(&count), kCudaIllegalAddress);
  CHECK_EQ(driver.Init(0), kCudaIllegalAddress);
  fake.StopFailing();
  CHECK_EQ(driver.Init(0), cuda::kSuccess);
  CHECK_EQ(fake.failed_calls(), 4);
  fake.CheckNoViolations();
}

TEST(WhatTheFakeRefusesToTakeBackIsNoLeak) {
  FakeCuda fake;
  const cuda::Address range = Reserve(2 * kUnit);
  Map(range, kUnit);
  const cuda::MemoryHandle handle = Create(kUnit);
  {
    const CudaScope scope(driver, fake.context(0));
    const cuda::Address plain = Alloc(512);
    fake.FailFrom(1, kCudaIllegalAddress);
    driver.MemUnmap(range, kUnit);  // and so its range cannot be freed either
    driver.MemRelease(handle);
    driver.MemFree(plain);
  }
  CHECK_EQ(fake.failed_calls(), 5);
  CHECK_EQ(fake.mapped_bytes(), kUnit);
  fake.CheckClean();
}

}  // namespace
}  // namespace jax_bfc::testing
