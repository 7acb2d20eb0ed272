// What a FakeCuda does with streams, captures, pending device work, and
// contexts.
#include <atomic>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "fake_cuda.h"
#include "source/cuda_driver.h"

namespace jax_bfc::testing {
namespace {

constexpr size_t kUnit = FakeCudaMemory::kGranularity;

const CudaDriver& driver = *FakeCuda::driver();

using Ids = std::set<uint64_t>;

// Mapped and writable by the device.
cuda::Address Mapped(size_t bytes, int device = 0) {
  cuda::Address address = 0;
  cuda::MemoryHandle handle = 0;
  cuda::AllocationProperties properties;
  cuda::AccessDescription access;
  properties.location.id = access.location.id = device;
  CHECK_EQ(driver.MemAddressReserve(&address, bytes, 0, 0, 0), 0);
  CHECK_EQ(driver.MemCreate(&handle, bytes, &properties, 0), 0);
  CHECK_EQ(driver.MemMap(address, bytes, 0, handle, 0), 0);
  CHECK_EQ(driver.MemRelease(handle), 0);
  CHECK_EQ(driver.MemSetAccess(address, bytes, &access, 1), 0);
  return address;
}

void Unmap(cuda::Address address, size_t bytes) {
  CHECK_EQ(driver.MemUnmap(address, bytes), cuda::kSuccess);
  CHECK_EQ(driver.MemAddressFree(address, bytes), cuda::kSuccess);
}

uint64_t Id(cuda::Stream stream) {
  uint64_t id = 0;
  CHECK_EQ(driver.StreamGetId(stream, &id), cuda::kSuccess);
  return id;
}

int CaptureStatus(cuda::Stream stream) {
  int status = -1;
  CHECK_EQ(driver.StreamIsCapturing(stream, &status), cuda::kSuccess);
  return status;
}

TEST(HandlesOfStreamsComeBackAndIdsNeverDo) {
  FakeCuda fake;
  const cuda::Stream first = fake.CreateStream();
  const cuda::Stream second = fake.CreateStream();
  CHECK(first != second && first != nullptr && second != nullptr);
  Ids ids = {Id(first), Id(second)};
  fake.DestroyStream(first);
  CHECK_EQ(fake.CreateStream(1), first);
  CHECK(ids.insert(Id(first)).second);
  CHECK_EQ(Id(first), fake.StreamId(first));
  {
    FakeCuda other;
    CHECK(ids.insert(Id(other.CreateStream())).second);
  }
  fake.CheckClean();
}

TEST(ADestroyedStreamIsNotNamedToTheDriver) {
  FakeCuda fake;
  const cuda::Stream stream = fake.CreateStream();
  fake.DestroyStream(stream);
  uint64_t id = 0;
  int status = 0;
  CHECK_EQ(driver.StreamGetId(stream, &id), kCudaInvalidHandle);
  fake.CheckViolated("a destroyed stream");
  CHECK_EQ(driver.StreamIsCapturing(stream, &status), kCudaInvalidHandle);
  fake.CheckViolated("a destroyed stream");
  fake.DestroyStream(stream);
  fake.CheckViolated("a destroyed stream");
  fake.Launch(stream, 0, 1);
  fake.CheckViolated("a destroyed stream");
}

TEST(TheDefaultStreamIsThatOfTheCurrentContext) {
  FakeCuda fake;
  uint64_t id = 0;
  CHECK_EQ(driver.StreamGetId(nullptr, &id), kCudaInvalidHandle);
  fake.CheckViolated("the default stream of no context");
  std::vector<uint64_t> ids;
  for (const int device : {0, 1, 0}) {
    const FakeCuda::CurrentContext current(fake, device);
    ids.push_back(Id(nullptr));
    CHECK_EQ(CaptureStatus(nullptr), cuda::kCaptureStatusNone);
  }
  CHECK(ids[0] != ids[1] && ids[0] == ids[2]);
  fake.CheckClean();
}

TEST(WorkIsPendingUntilItsStreamIsFinished) {
  FakeCuda fake;
  const cuda::Address memory = Mapped(2 * kUnit);
  const cuda::Stream a = fake.CreateStream();
  const cuda::Stream b = fake.CreateStream();
  fake.Launch(a, memory, 512);
  fake.Launch(b, memory + 256, 512);
  CHECK(fake.UsersOf(memory, 1) == Ids{Id(a)});
  CHECK((fake.UsersOf(memory + 511, 1) == Ids{Id(a), Id(b)}));
  CHECK(fake.UsersOf(memory + 512, kUnit) == Ids{Id(b)});
  CHECK(fake.UsersOf(memory + 768, kUnit).empty());
  fake.CheckNoForeignUser(a, memory, 256);
  std::string failure;
  try {
    fake.CheckNoForeignUser(a, memory, 512);
  } catch (const Failure& caught) {
    failure = caught.text;
  }
  CHECK(failure.find("stream id " + std::to_string(Id(b)) +
                     " still has work") != std::string::npos);
  fake.FinishStream(b);
  fake.CheckNoForeignUser(a, memory, 512);
  CHECK_EQ(fake.pending(), 1);
  fake.Synchronize();
  CHECK_EQ(fake.pending(), 0);
  CHECK_EQ(fake.barriers(), 0);
  Unmap(memory, 2 * kUnit);
  fake.CheckClean();
}

TEST(WorkOutlivesItsStream) {
  FakeCuda fake;
  const cuda::Address memory = Mapped(kUnit);
  const cuda::Stream stream = fake.CreateStream();
  const uint64_t id = Id(stream);
  fake.Launch(stream, memory, kUnit);
  fake.DestroyStream(stream);
  CHECK_EQ(fake.CreateStream(), stream);
  // The same handle is another stream.
  CHECK(fake.UsersOf(memory, kUnit) == Ids{id});
  fake.FinishStream(stream);
  CHECK(fake.UsersOf(memory, kUnit) == Ids{id});
  fake.FinishId(id);
  CHECK(fake.UsersOf(memory, kUnit).empty());
  fake.CheckNoViolations();
}

TEST(FreeingPlainMemoryWaitsForItsDevice) {
  FakeCuda fake;
  const FakeCuda::CurrentContext current(fake, 0);
  const cuda::Address memory = Mapped(kUnit);
  const cuda::Address other = Mapped(kUnit, 1);
  const cuda::Stream stream = fake.CreateStream();
  fake.Launch(stream, memory, kUnit);
  fake.Launch(fake.CreateStream(1), other, kUnit);
  cuda::Address plain = 0;
  CHECK_EQ(driver.MemAlloc(&plain, 256), cuda::kSuccess);
  fake.Launch(stream, plain, 256);
  CHECK_EQ(fake.pending(), 3);
  CHECK_EQ(driver.MemFree(plain), cuda::kSuccess);
  CHECK_EQ(fake.barriers(), 1);
  CHECK_EQ(fake.pending(), 1);
  CHECK(!fake.UsersOf(other, 1).empty());
  fake.CheckNoViolations();
}

TEST(UnmappingWhatPendingWorkTouchesIsAFault) {
  FakeCuda fake;
  const cuda::Address memory = Mapped(kUnit);
  const cuda::Stream stream = fake.CreateStream();
  fake.Launch(stream, memory + kUnit - 1, 1);
  CHECK_EQ(driver.MemUnmap(memory, kUnit), cuda::kSuccess);
  fake.CheckViolated("a fault: pending work touches it");
  CHECK_EQ(fake.pending(), 1);
}

TEST(WorkOnMemoryThatTheDeviceCannotWriteIsAFault) {
  FakeCuda fake;
  const FakeCuda::CurrentContext current(fake, 0);
  const cuda::Stream own = fake.CreateStream(0);
  const cuda::Stream other = fake.CreateStream(1);
  const cuda::Address memory = Mapped(kUnit);
  cuda::Address plain = 0;
  CHECK_EQ(driver.MemAlloc(&plain, 512), cuda::kSuccess);
  fake.Launch(own, memory, kUnit);
  fake.Launch(own, plain, 512);
  fake.CheckNoViolations();
  const auto broken = [&](cuda::Stream stream, cuda::Address a, size_t bytes) {
    fake.Launch(stream, a, bytes);
    fake.CheckViolated("a fault: memory that device");
  };
  broken(own, memory, kUnit + 1);
  broken(own, plain, 513);
  broken(own, memory - 1, 1);
  broken(other, memory, 1);
  broken(other, plain, 1);
  // Mapped, with no access set.
  fake.FailCall(1, cuda::kOutOfMemory, "MemSetAccess");
  try {
    Mapped(kUnit);
  } catch (const Failure&) {
  }
  broken(own, memory + kUnit, 1);
}

TEST(ACaptureIsSeenAndKeepsWhatIsLaunched) {
  FakeCuda fake;
  const cuda::Address memory = Mapped(kUnit);
  const cuda::Stream stream = fake.CreateStream();
  CHECK_EQ(CaptureStatus(stream), cuda::kCaptureStatusNone);
  fake.BeginCapture(stream);
  CHECK_EQ(CaptureStatus(stream), 1);
  fake.Launch(stream, memory, 512);
  CHECK_EQ(fake.pending(), 0);
  const std::optional<FakeGraph> graph = fake.EndCapture(stream);
  CHECK(graph == FakeGraph{{memory, 512}});
  CHECK_EQ(CaptureStatus(stream), cuda::kCaptureStatusNone);
  fake.LaunchGraph(stream, *graph);
  CHECK(fake.UsersOf(memory, 512) == Ids{Id(stream)});
  fake.Synchronize();
  Unmap(memory, kUnit);
  fake.CheckClean();
  fake.LaunchGraph(stream, *graph);
  fake.CheckViolated("a fault");
}

TEST(CapturesBeginAndEndInTurn) {
  FakeCuda fake;
  const cuda::Stream stream = fake.CreateStream();
  CHECK(fake.EndCapture(stream) == std::nullopt);
  fake.CheckViolated("not captured");
  fake.BeginCapture(stream);
  fake.BeginCapture(stream);
  fake.CheckViolated("captured already");
  fake.DestroyStream(stream);
  fake.CheckViolated("the stream is captured");
}

TEST(PlainMemoryCallsEndEveryCaptureUnlessTheirThreadIsRelaxed) {
  FakeCuda fake;
  const FakeCuda::CurrentContext current(fake, 0);
  const cuda::Stream a = fake.CreateStream(0);
  const cuda::Stream b = fake.CreateStream(1);
  cuda::Address plain = 0;
  size_t free = 0, total = 0;
  CHECK_EQ(driver.MemAlloc(&plain, 512), cuda::kSuccess);
  for (const int call : {0, 1, 2}) {
    for (const int thread_mode : {0, 1}) {
      fake.BeginCapture(a);
      fake.BeginCapture(b);
      int mode = thread_mode;
      CHECK_EQ(driver.ThreadExchangeStreamCaptureMode(&mode), cuda::kSuccess);
      CHECK_EQ(mode, 0);
      cuda::Address more = 0;
      CHECK_EQ(call == 0   ? driver.MemAlloc(&more, 512)
               : call == 1 ? driver.MemFree(plain)
                           : driver.MemGetInfo(&free, &total),
               kCudaCaptureUnsupported);
      fake.CheckViolated("the capture is lost");
      CHECK_EQ(driver.ThreadExchangeStreamCaptureMode(&mode), cuda::kSuccess);
      CHECK_EQ(mode, thread_mode);
      CHECK_EQ(CaptureStatus(a), 2);
      CHECK(fake.EndCapture(a) == std::nullopt);
      CHECK(fake.EndCapture(b) == std::nullopt);
    }
  }
  fake.BeginCapture(a);
  {
    const CudaScope scope(driver, fake.context(0));
    CHECK_EQ(driver.MemGetInfo(&free, &total), cuda::kSuccess);
    CHECK_EQ(driver.MemFree(plain), cuda::kSuccess);
    CHECK_EQ(driver.MemAlloc(&plain, 512), cuda::kSuccess);
    CHECK_EQ(CaptureStatus(a), 1);
    std::thread([&] {  // which has a mode of its own
      const FakeCuda::CurrentContext its(fake, 0);
      driver.MemGetInfo(&free, &total);
    })
        .join();
    fake.CheckViolated("MemGetInfo: not in relaxed mode");
  }
  CHECK_EQ(CaptureStatus(a), 2);
  CHECK(fake.EndCapture(a) == std::nullopt);
  CHECK_EQ(driver.MemFree(plain), cuda::kSuccess);
  fake.CheckClean();
}

TEST(AModeIsOneOfThree) {
  FakeCuda fake;
  int mode = 3;
  CHECK_EQ(driver.ThreadExchangeStreamCaptureMode(&mode), kCudaInvalidValue);
  fake.CheckViolated("no mode 3");
}

TEST(ThreadsMayCallAtOnce) {
  FakeCuda fake;
  constexpr int kThreads = 4, kRounds = 200;
  std::atomic<int> failed = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kRounds; ++i) {
        const CudaScope scope(driver, fake.context(t % 2));
        cuda::Address address = 0;
        if (!scope.entered() || driver.MemAlloc(&address, 512) ||
            driver.MemFree(address)) {
          ++failed;
        }
        const cuda::Stream stream = fake.CreateStream(t % 2);
        uint64_t id = 0;
        if (driver.StreamGetId(stream, &id)) ++failed;
        fake.DestroyStream(stream);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(failed.load(), 0);
  CHECK_EQ(fake.barriers(), kThreads * kRounds);
  CHECK_EQ(fake.calls(), kThreads * kRounds * 7);
  fake.CheckClean();
}

TEST(PlainMemoryAndItsFiguresNeedACurrentContext) {
  FakeCuda fake;
  cuda::Address address = 0;
  size_t free = 0, total = 0;
  CHECK_EQ(driver.MemAlloc(&address, 512), kCudaInvalidContext);
  fake.CheckViolated("MemAlloc: no context is current");
  CHECK_EQ(driver.MemFree(address), kCudaInvalidContext);
  fake.CheckViolated("MemFree: no context is current");
  CHECK_EQ(driver.MemGetInfo(&free, &total), kCudaInvalidContext);
  fake.CheckViolated("MemGetInfo: no context is current");
  cuda::Context context = nullptr;
  CHECK_EQ(driver.DevicePrimaryCtxRetain(&context, 1), cuda::kSuccess);
  CHECK_EQ(context, fake.context(1));
  const CudaScope scope(driver, context);
  CHECK(scope.entered());
  CHECK_EQ(driver.MemAlloc(&address, 512), cuda::kSuccess);
  CHECK_EQ(fake.FreeBytes(1), (size_t{1} << 30) - 512);
  CHECK_EQ(driver.MemFree(address), cuda::kSuccess);
  std::thread([&] {
    driver.MemAlloc(&address, 512);  // another thread, another stack
  }).join();
  fake.CheckViolated("MemAlloc: no context is current");
}

TEST(ContextsArePoppedByThoseWhoPushedThem) {
  FakeCuda fake;
  cuda::Context context = nullptr;
  CHECK_EQ(driver.CtxPopCurrent(&context), kCudaInvalidContext);
  fake.CheckViolated("no context is current");
  CHECK_EQ(driver.CtxPushCurrent(nullptr), kCudaInvalidContext);
  fake.CheckViolated("null");
  {
    const FakeCuda::CurrentContext current(fake, 0);
    CHECK_EQ(driver.CtxPopCurrent(&context), kCudaInvalidContext);
    fake.CheckViolated("the context is the caller's");
    CHECK_EQ(driver.CtxPushCurrent(fake.context(1)), cuda::kSuccess);
  }
  CHECK_EQ(fake.Leaks().size(), 1);
  CHECK(fake.Leaks()[0].find("1 contexts not popped") != std::string::npos);
  CHECK_EQ(driver.CtxPopCurrent(&context), cuda::kSuccess);
  CHECK_EQ(context, fake.context(1));
  fake.CheckClean();
}

}  // namespace
}  // namespace jax_bfc::testing
