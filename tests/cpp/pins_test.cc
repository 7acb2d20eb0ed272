// What CUDA graphs hold: the same addresses again, nobody else's, and given back
// with the call site once the device is idle. On a driver in memory.
#include "pool/pins.h"

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "fake_cuda.h"
#include "pool/registry.h"
#include "pool/warn.h"
#include "pool_fixture.h"

namespace jax_bfc::testing {
namespace {

// The registry's pool of device 0, as a process's first use makes it.
class Gpu {
 public:
  explicit Gpu(size_t limit_bytes = 64 * kMiB) : fake_(Fake()) {
    std::string why;
    DeviceConfig config;
    config.pool.limit_bytes = limit_bytes;
    pool_ = CudaPool(0, &why);
    if (pool_ == nullptr) Fail(__FILE__, __LINE__, why);
    CHECK_EQ(Reset(CudaPoolIndex(0)).value_or(""), "");
    CHECK_EQ(Configure(CudaPoolIndex(0), config).value_or(""), "");
    stream_ = fake_.CreateStream();
    barriers_ = fake_.barriers();
  }
  void Finish() {
    CHECK_EQ(Reset(CudaPoolIndex(0)).value_or(""), "");
    fake_.CheckClean();
  }

  FakeCuda& fake() { return fake_; }
  // Since it was made.
  int barriers() const { return fake_.barriers() - barriers_; }
  Pool& pool() { return *pool_; }
  cuda::Stream stream() const { return stream_; }

  // As a handler that is captured: its blocks, the launch that uses each of
  // them, and the graph.
  FakeGraph Capture(Pins& pins, const std::vector<size_t>& sizes,
                    std::vector<void*>* where = nullptr,
                    KernelId kernel = TestKernel()) {
    const cuda::Stream captured = fake_.CreateStream();
    fake_.BeginCapture(captured);
    const int barriers = fake_.barriers();
    std::unique_ptr<OomReport> report;
    for (uint32_t i = 0; i < sizes.size(); ++i) {
      Allocation made;
      CHECK(pins.Get(*pool_, i, {kernel, sizes[i], 1}, &made, &report));
      CHECK_EQ(made.id, PinnedId(pool_->index()));
      CHECK(made.bytes >= sizes[i]);
      fake_.Launch(captured, reinterpret_cast<uintptr_t>(made.ptr), sizes[i]);
      if (where != nullptr) where->push_back(made.ptr);
    }
    CHECK_EQ(fake_.barriers(), barriers);  // nothing waited
    const auto graph = fake_.EndCapture(captured);
    CHECK(graph.has_value());
    fake_.DestroyStream(captured);
    return *graph;
  }

 private:
  // One for the process, as the registry's pools are.
  static FakeCuda& Fake() {
    static FakeCuda* const fake = [] {
      SetCudaDriverForTest(FakeCuda::driver());
      return new FakeCuda({.devices = 1});
    }();
    return *fake;
  }

  FakeCuda& fake_;
  int barriers_;
  Pool* pool_;
  cuda::Stream stream_;
};

std::vector<void*> Addresses(Gpu& gpu, Pins& pins,
                             const std::vector<size_t>& sizes) {
  std::vector<void*> where;
  gpu.Capture(pins, sizes, &where);
  return where;
}

TEST(ACallSiteGetsTheSameAddressesAgain) {
  Gpu gpu;
  {
    Pins pins;
    const std::vector<size_t> sizes = {kMiB, 1000, kMiB, 0};
    const auto first = Addresses(gpu, pins, sizes);
    const size_t pinned = gpu.pool().Stats().pinned_bytes;
    CHECK_EQ(pinned, 2 * kMiB + 1024 + 256);
    for (int i = 0; i < 5; ++i) CHECK(Addresses(gpu, pins, sizes) == first);
    CHECK_EQ(gpu.pool().Stats().pinned_bytes, pinned);
    CHECK_EQ(CheckCounted(gpu.pool()).bytes_in_use, pinned);
  }
  CHECK_EQ(gpu.pool().Stats().pinned_bytes, 0);
  CHECK_EQ(CheckCounted(gpu.pool()).bytes_in_use, 0);
  gpu.Finish();
}

TEST(ALargerSizeGetsANewChunkAndTheOldOneStays) {
  Gpu gpu;
  {
    Pins pins;
    const auto small = Addresses(gpu, pins, {kMiB});
    const auto large = Addresses(gpu, pins, {2 * kMiB});
    CHECK(small != large);
    CHECK_EQ(gpu.pool().Stats().pinned_bytes, 3 * kMiB);
    CHECK(Addresses(gpu, pins, {kMiB}) == small);
    CHECK(Addresses(gpu, pins, {2 * kMiB}) == large);
    // A size that is new takes the oldest that it fits.
    CHECK(Addresses(gpu, pins, {kMiB / 2}) == small);
    CHECK(Addresses(gpu, pins, {kMiB + 256}) == large);
    CHECK_EQ(gpu.pool().Stats().pinned_bytes, 3 * kMiB);
  }
  gpu.Finish();
}

TEST(CallSitesAndAllocationsShareNothing) {
  Gpu gpu;
  {
    Pins a;
    Pins b;
    auto where = Addresses(gpu, a, {kMiB, kMiB});
    const auto of_b = Addresses(gpu, b, {kMiB, kMiB});
    where.insert(where.end(), of_b.begin(), of_b.end());
    const uint32_t name =
        gpu.pool().StreamOf(gpu.fake().StreamId(gpu.stream()));
    Allocation eager;
    std::unique_ptr<OomReport> report;
    CHECK(gpu.pool().Allocate(
        {.kernel = TestKernel(), .bytes = kMiB, .alignment = 1, .stream = name},
        &eager, &report));
    where.push_back(eager.ptr);
    std::sort(where.begin(), where.end());
    for (size_t i = 1; i < where.size(); ++i) {
      CHECK(static_cast<char*>(where[i]) - static_cast<char*>(where[i - 1]) >=
            static_cast<ptrdiff_t>(kMiB));
    }
    CHECK(Free(gpu.pool(), eager));
  }
  gpu.Finish();
}

// By address, the kernel and bytes of each chunk that a snapshot shows as
// pinned.
using PinnedChunks = std::map<void*, std::pair<KernelId, size_t>>;
PinnedChunks InSnapshot(Pool& pool) {
  PinnedChunks pinned;
  size_t bytes = 0;
  for (const SnapshotLane& lane : pool.Snapshot().lanes) {
    for (const SnapshotChunk& chunk : lane.chunks) {
      if (!chunk.pinned) continue;
      CHECK(chunk.state == ByteState::kInUse);
      CHECK_EQ(lane.lane, Pool::kNoStream);
      pinned[reinterpret_cast<void*>(chunk.address)] = {*chunk.kernel,
                                                        chunk.bytes};
      bytes += chunk.bytes;
    }
  }
  CHECK_EQ(bytes, pool.Stats().pinned_bytes);
  return pinned;
}

TEST(ASnapshotTellsWhatGraphsHoldFromWhatIsInUse) {
  Gpu gpu;
  Pool& pool = gpu.pool();
  const KernelId other = InternKernel("other");
  const Allocation before = Get(pool, kMiB);  // of the same lane
  CHECK(InSnapshot(pool).empty());
  {
    Pins a;
    const auto of_a = Addresses(gpu, a, {kMiB, 1000});
    {
      Pins b;
      std::vector<void*> of_b;
      gpu.Capture(b, {5000}, &of_b, other);
      const Allocation eager = Get(pool, 3000, 1, other);
      gpu.Capture(b, {4000}, nullptr, other);  // the same chunk again
      CHECK((InSnapshot(pool) == PinnedChunks{{of_a[0], {TestKernel(), kMiB}},
                                              {of_a[1], {TestKernel(), 1024}},
                                              {of_b[0], {other, 5120}}}));
      CHECK(Free(pool, eager));
    }
    CHECK((InSnapshot(pool) == PinnedChunks{{of_a[0], {TestKernel(), kMiB}},
                                            {of_a[1], {TestKernel(), 1024}}}));
  }
  CHECK(InSnapshot(pool).empty());
  gpu.fake().Synchronize();
  pool.Trim();
  CHECK(InSnapshot(pool).empty());
  // Who gets the memory next is no graph.
  std::vector<Allocation> later;
  for (const size_t size : {kMiB, size_t{1000}, size_t{5000}, size_t{3000}}) {
    later.push_back(Get(pool, size));
  }
  CHECK(InSnapshot(pool).empty());
  for (const Allocation& allocation : later) CHECK(Free(pool, allocation));
  CHECK(Free(pool, before));
  gpu.Finish();
}

TEST(TheLastReplayMayOutliveTheExecutable) {
  Gpu gpu;
  {
    Pins pins;
    std::vector<void*> where;
    const FakeGraph graph = gpu.Capture(pins, {kMiB}, &where);
    gpu.fake().LaunchGraph(gpu.stream(), graph);
  }
  CHECK_EQ(gpu.barriers(), 0);  // its death asks nothing of the driver
  CHECK_EQ(CheckCounted(gpu.pool()).cached_bytes, kMiB);
  // Another call site, and one that names no stream, while it runs.
  Pins pins;
  const FakeGraph graph = gpu.Capture(pins, {kMiB});
  const Allocation a = Get(gpu.pool(), kMiB);
  const cuda::Stream other = gpu.fake().CreateStream();
  gpu.fake().CheckNoForeignUser(other, reinterpret_cast<uintptr_t>(a.ptr),
                                a.bytes);
  gpu.fake().LaunchGraph(other, graph);
  CHECK(Free(gpu.pool(), a));
  gpu.fake().CheckNoViolations();
  gpu.fake().Synchronize();
}

TEST(TrimmingLeavesWhatGraphsHold) {
  Gpu gpu;
  {
    Pins pins;
    const FakeGraph graph = gpu.Capture(pins, {5 * kMiB});
    gpu.pool().Trim();
    CHECK_EQ(Reset(CudaPoolIndex(0)).has_value(), true);
    gpu.fake().LaunchGraph(gpu.stream(), graph);
    gpu.fake().CheckNoViolations();
  }
  CHECK(gpu.pool().Trim() >= 6 * kMiB);
  gpu.Finish();
}

// A capture on a card of 8 MiB of limit, and the warnings that come of it.
class WarnedCapture {
 public:
  WarnedCapture() : stream_(gpu.fake().CreateStream()) {
    warnings().clear();
    SetWarnHook([](const std::string& text) { warnings().push_back(text); });
    gpu.fake().BeginCapture(stream_);
  }
  ~WarnedCapture() { SetWarnHook(nullptr); }

  bool Get(Pins& pins, uint32_t index, size_t bytes) {
    Allocation made;
    report = nullptr;
    return pins.Get(gpu.pool(), index, {TestKernel(), bytes, 1}, &made,
                    &report);
  }
  bool End() { return gpu.fake().EndCapture(stream_).has_value(); }
  static std::vector<std::string>& warnings() {
    static std::vector<std::string> texts;
    return texts;
  }

  Gpu gpu{8 * kMiB};
  std::unique_ptr<OomReport> report;

 private:
  const cuda::Stream stream_;
};

TEST(PastTheLimitACaptureIsServedAndAWarningSaysSo) {
  WarnedCapture capture;
  Pool& pool = capture.gpu.pool();
  {
    Pins pins;
    CHECK(capture.Get(pins, 0, 3 * kMiB));
    CHECK_EQ(capture.warnings().size(), 0u);
    CHECK(capture.Get(pins, 1, 9 * kMiB));
    CHECK(capture.End());
    CHECK_EQ(capture.warnings().size(), 1u);
    CHECK(capture.warnings()[0].find(
              "beyond its limit of 8,388,608: CUDA graphs hold 12,582,912") !=
          std::string::npos);
    // Nobody else may have more than the limit.
    GetRefused(pool, 3 * kMiB);
    CHECK_EQ(pool.Stats().limit_bytes, 8 * kMiB);
  }
  pool.Trim();
  CHECK_EQ(pool.Stats().arena.mapped_bytes, 0u);
  capture.gpu.Finish();
}

TEST(ACaptureThatTheCardHasNoMemoryForSaysWhyAndStaysWhole) {
  WarnedCapture capture;
  {
    Pins pins;
    CHECK(!capture.Get(pins, 0, size_t{1} << 46));
    CHECK(capture.report != nullptr);
    CHECK_EQ(capture.warnings().size(), 1u);
    CHECK(capture.warnings()[0].find("while a CUDA graph was captured") !=
          std::string::npos);
    CHECK(capture.Get(pins, 1, 3 * kMiB));
    CHECK(capture.End());
  }
  capture.gpu.Finish();
}

TEST(RandomCapturesReplaysAndDeathsNeverShareABlock) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    Gpu gpu(64 * kMiB);
    std::mt19937_64 random(seed);
    struct Executable {
      std::unique_ptr<Pins> pins = std::make_unique<Pins>();
      std::vector<FakeGraph> graphs;
    };
    {
      std::vector<Executable> executables(4);
      for (int i = 0; i < 400; ++i) {
        Executable& e = executables[random() % executables.size()];
        switch (random() % 8) {
          case 0: {
            std::vector<size_t> sizes(1 + random() % 3);
            for (size_t& s : sizes) s = size_t{256} << random() % 10;
            e.graphs.push_back(gpu.Capture(*e.pins, sizes));
            break;
          }
          case 1:
            if (random() % 8 == 0) e = Executable();
            break;
          case 2:
            gpu.fake().Synchronize();
            break;
          case 3: {
            // Eager work beside the graphs, without an order of its own.
            const Allocation a = Get(gpu.pool(), size_t{256} << random() % 12);
            const cuda::Stream other = gpu.fake().CreateStream();
            const auto address = reinterpret_cast<uintptr_t>(a.ptr);
            gpu.fake().CheckNoForeignUser(other, address, a.bytes);
            gpu.fake().Launch(other, address, a.bytes);
            CHECK(Free(gpu.pool(), a));
            break;
          }
          default:
            if (!e.graphs.empty()) {
              gpu.fake().LaunchGraph(gpu.stream(),
                                     e.graphs[random() % e.graphs.size()]);
            }
        }
      }
      CheckCounted(gpu.pool());
      gpu.fake().CheckNoViolations();
    }
    gpu.Finish();
  }
}

}  // namespace
}  // namespace jax_bfc::testing
