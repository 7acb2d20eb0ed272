// The CUDA sources and pools on a driver in memory: order of streams, trimming,
// refusals of the driver, streams that come and go.
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "fake_gpu.h"

namespace jax_bfc::testing {
namespace {

TEST(AStreamGetsItsOwnMemoryBackAtOnce) {
  Gpu gpu(64 * kMiB);
  const cuda::Stream stream = gpu.fake().CreateStream();
  const uint32_t name = gpu.NameOf(stream);
  const Allocation a = gpu.GetIn(name, kMiB);
  gpu.Use(stream, a);
  CHECK(Free(gpu.pool(), a));
  const int calls = gpu.fake().calls();
  const Allocation b = gpu.GetIn(name, kMiB);
  CHECK_EQ(b.ptr, a.ptr);
  CHECK(Free(gpu.pool(), b));
  CHECK_EQ(gpu.fake().calls(), calls);  // none for a pair
  CHECK_EQ(gpu.fake().barriers(), 0);
  gpu.Finish();
}

TEST(StreamsHaveLanesOfTheirOwn) {
  Gpu gpu(64 * kMiB);
  const cuda::Stream s = gpu.fake().CreateStream();
  const cuda::Stream t = gpu.fake().CreateStream();
  CHECK(gpu.NameOf(s) != gpu.NameOf(t));
  CHECK_EQ(gpu.NameOf(s), gpu.NameOf(s));
  const Allocation a = gpu.GetIn(gpu.NameOf(s), kMiB);
  gpu.Use(s, a);
  CHECK(Free(gpu.pool(), a));
  const Allocation b = gpu.GetIn(gpu.NameOf(t), kMiB);
  gpu.Use(t, b);
  CHECK(Free(gpu.pool(), b));
  CheckCounted(gpu.pool());
  gpu.Finish();
}

TEST(PreallocationIsOfThePoolNotOfEachStream) {
  Gpu gpu(64 * kMiB, {.preallocate = true});
  const uint32_t s = gpu.NameOf(gpu.fake().CreateStream());
  const uint32_t t = gpu.NameOf(gpu.fake().CreateStream());
  const auto mapped = [&] { return gpu.pool().Stats().arena.mapped_bytes; };
  CHECK(Free(gpu.pool(), gpu.GetIn(s, kMiB)));
  CHECK_EQ(mapped(), 64 * kMiB);
  CHECK_EQ(gpu.pool().Trim(), 64 * kMiB);
  CHECK(Free(gpu.pool(), gpu.GetIn(t, kMiB)));
  CHECK_EQ(mapped(), 2 * kMiB);
  CHECK(ResetPool(gpu.pool()));
  CHECK(Free(gpu.pool(), gpu.GetIn(t, kMiB)));
  CHECK_EQ(mapped(), 64 * kMiB);
  gpu.Finish();
}

TEST(WhatAnotherStreamFreedIsTrimmedOnlyWhenItsWorkIsDone) {
  for (const bool virtual_memory : {true, false}) {
    Gpu gpu(16 * kMiB, {.virtual_memory = virtual_memory});
    const cuda::Stream s = gpu.fake().CreateStream();
    const cuda::Stream t = gpu.fake().CreateStream();
    const Allocation a = gpu.GetIn(gpu.NameOf(s), 12 * kMiB);
    gpu.Use(s, a);
    CHECK(Free(gpu.pool(), a));
    const Allocation b = gpu.GetIn(gpu.NameOf(t), 12 * kMiB);
    gpu.Use(t, b);
    CHECK(gpu.fake().barriers() > 0);
    CHECK(Free(gpu.pool(), b));
    CheckCounted(gpu.pool());
    gpu.Finish();
  }
}

TEST(WithoutAStreamMemoryWaitsForTheDevice) {
  Gpu gpu(64 * kMiB);
  const cuda::Stream s = gpu.fake().CreateStream();
  const Allocation a = gpu.GetIn(Pool::kNoStream, kMiB);
  gpu.Use(s, a);
  CHECK(Free(gpu.pool(), a));
  CHECK_EQ(gpu.fake().barriers(), 0);  // freeing asks nothing of the driver
  const PoolStats stats = CheckCounted(gpu.pool());
  CHECK_EQ(stats.bytes_in_use, 0);
  CHECK_EQ(stats.cached_bytes, kMiB);
  // There is room beside it: nothing waits for it yet.
  const Allocation b = gpu.GetIn(Pool::kNoStream, kMiB);
  CHECK(b.ptr != a.ptr);
  CHECK_EQ(gpu.fake().barriers(), 0);
  const Allocation c = gpu.GetIn(Pool::kNoStream, kMiB);
  CHECK_EQ(c.ptr, a.ptr);
  CHECK_EQ(gpu.fake().barriers(), 1);
  CHECK(Free(gpu.pool(), b));
  CHECK(Free(gpu.pool(), c));
  gpu.Finish();
}

TEST(ADestroyedStreamsHandleMayComeBackForAnotherStream) {
  Gpu gpu(64 * kMiB);
  const cuda::Stream old_stream = gpu.fake().CreateStream();
  const uint32_t old_name = gpu.NameOf(old_stream);
  CHECK(Free(gpu.pool(), gpu.GetIn(old_name, kMiB)));
  gpu.fake().DestroyStream(old_stream);
  const cuda::Stream new_stream = gpu.fake().CreateStream();
  CHECK_EQ(new_stream, old_stream);
  CHECK(gpu.NameOf(new_stream) != old_name);
  // What is left of the old one is found when it is wanted, with no word to a
  // stream that is gone.
  CHECK(gpu.pool().Trim() > 0);
  gpu.Finish();
}

TEST(AMemoryOfADeadStreamIsNotLost) {
  Gpu gpu(16 * kMiB);
  for (int i = 0; i < 5; ++i) {
    const cuda::Stream stream = gpu.fake().CreateStream();
    const Allocation a = gpu.GetIn(gpu.NameOf(stream), 12 * kMiB);
    gpu.Use(stream, a);
    CHECK(Free(gpu.pool(), a));
    gpu.fake().DestroyStream(stream);
  }
  gpu.Finish();
}

TEST(MoreStreamsThanSlotsTakeThoseThatAreIdle) {
  Gpu gpu(200 * kMiB);
  std::vector<cuda::Stream> streams;
  for (uint32_t i = 0; i < 3 * kStreamLanes; ++i) {
    streams.push_back(gpu.fake().CreateStream());
    const uint32_t name = gpu.NameOf(streams.back());
    CHECK(name != Pool::kNoStream);
    const Allocation a = gpu.GetIn(name, kMiB);
    gpu.Use(streams.back(), a);
    CHECK(Free(gpu.pool(), a));
  }
  CheckCounted(gpu.pool());
  // The first has lost its slot and gets one again.
  const Allocation a = gpu.GetIn(gpu.NameOf(streams[0]), kMiB);
  gpu.Use(streams[0], a);
  CHECK(Free(gpu.pool(), a));
  gpu.Finish();
}

TEST(ANameThatIsOutOfDateIsServedWithoutOrder) {
  Gpu gpu(200 * kMiB);
  const cuda::Stream first = gpu.fake().CreateStream();
  const uint32_t name = gpu.NameOf(first);
  // Until another stream has its slot, with a chunk in the cache that its work
  // still touches.
  for (uint32_t other = ~name; (other & 0xFF) != (name & 0xFF);) {
    const cuda::Stream stream = gpu.fake().CreateStream();
    other = gpu.NameOf(stream);
    const Allocation a = gpu.GetIn(other, kMiB);
    gpu.Use(stream, a);
    CHECK(Free(gpu.pool(), a));
  }
  // As a handler that was decoded before its stream lost the slot.
  const Allocation a = gpu.GetIn(name, kMiB);
  gpu.Use(first, a);
  CHECK(Free(gpu.pool(), a));
  CheckCounted(gpu.pool());
  CHECK(gpu.NameOf(first) != name);
  gpu.Finish();
}

TEST(WhereEveryStreamHoldsMemoryANewOneIsServedWithoutOrder) {
  Gpu gpu(200 * kMiB);
  std::vector<Allocation> held;
  for (uint32_t i = 0; i < kStreamLanes; ++i) {
    const cuda::Stream stream = gpu.fake().CreateStream();
    held.push_back(gpu.GetIn(gpu.NameOf(stream), kMiB));
  }
  const cuda::Stream one_more = gpu.fake().CreateStream();
  CHECK_EQ(gpu.NameOf(one_more), Pool::kNoStream);
  held.push_back(gpu.GetIn(gpu.NameOf(one_more), kMiB));
  for (const Allocation& a : held) CHECK(Free(gpu.pool(), a));
  CHECK(gpu.NameOf(one_more) != Pool::kNoStream);
  gpu.Finish();
}

TEST(AStreamThatLosesItsLaneWhileItsRequestGrowsIsServedWithoutOrder) {
  Gpu gpu(8 * kMiB);
  const cuda::Stream first = gpu.fake().CreateStream();
  const uint32_t name = gpu.NameOf(first);
  const cuda::Stream second = gpu.fake().CreateStream();
  const Allocation held = gpu.GetIn(gpu.NameOf(second), 6 * kMiB);
  gpu.before_reclaim = [&] {
    gpu.before_reclaim = nullptr;
    CHECK(Free(gpu.pool(), held));
    for (uint32_t i = 0; i < 2 * kStreamLanes; ++i) {
      CHECK(gpu.NameOf(gpu.fake().CreateStream()) != Pool::kNoStream);
    }
  };
  const Allocation a = gpu.GetIn(name, 4 * kMiB);
  CHECK_EQ(AllocationId::Unpack(a.id).slot, Pool::kNoStream);
  CHECK(Free(gpu.pool(), a));
  CheckCounted(gpu.pool());
  gpu.Finish();
}

// Full but for what waiting takes, which is there before it is wanted.
TEST(OnAFullCardTheDeviceCanStillBeWaitedFor) {
  Gpu gpu(200 * kMiB);
  const cuda::Stream stream = gpu.fake().CreateStream();
  for (int i = 0; i < 3; ++i) {
    CHECK(Free(gpu.pool(), gpu.GetIn(gpu.NameOf(stream), 16 * kMiB)));
    const auto rest = static_cast<int64_t>(gpu.fake().FreeBytes(0));
    gpu.fake().Occupy(0, rest);
    CHECK(gpu.pool().Trim() >= 16 * kMiB);
    gpu.fake().Occupy(0, -rest);
  }
  gpu.Finish();
}

TEST(TheLimitIsWhatWasConfiguredWhateverTheCardHasLeft) {
  Gpu gpu(200 * kMiB);
  const cuda::Stream stream = gpu.fake().CreateStream();
  gpu.fake().Occupy(0, static_cast<int64_t>(200 * kMiB));
  CHECK(!gpu.TryGet(gpu.NameOf(stream), 100 * kMiB));
  CHECK_EQ(gpu.pool().Stats().limit_bytes, 200 * kMiB);
  gpu.fake().Occupy(0, -static_cast<int64_t>(200 * kMiB));
  CHECK(Free(gpu.pool(), gpu.GetIn(gpu.NameOf(stream), 100 * kMiB)));
  gpu.Finish();
}

TEST(GrowthUnderACaptureLeavesItWhole) {
  for (const bool virtual_memory : {true, false}) {
    Gpu gpu(64 * kMiB, {.virtual_memory = virtual_memory});
    const cuda::Stream captured = gpu.fake().CreateStream();
    const cuda::Stream other = gpu.fake().CreateStream();
    gpu.fake().BeginCapture(captured);
    const Allocation a = gpu.GetIn(gpu.NameOf(other), 8 * kMiB);
    CHECK(Free(gpu.pool(), a));
    gpu.pool().Trim();
    CHECK(gpu.fake().EndCapture(captured).has_value());
    gpu.Finish();
  }
}

TEST(WhatTheCardDoesNotHaveEndsInTheReport) {
  Gpu gpu(200 * kMiB);
  gpu.fake().Occupy(0, static_cast<int64_t>(200 * kMiB));
  const cuda::Stream stream = gpu.fake().CreateStream();
  CHECK(!gpu.TryGet(gpu.NameOf(stream), 100 * kMiB));
  const std::string report = gpu.pool().LastOomReport();
  CHECK(report.find("on cuda:0 asked for 104,857,600 bytes") !=
        std::string::npos);
  CHECK(report.find("XLA_CLIENT_MEM_FRACTION") != std::string::npos);
  CHECK(Free(gpu.pool(), gpu.GetIn(gpu.NameOf(stream), 16 * kMiB)));
  gpu.Finish();
}

TEST(PlainBlocksThatStartAnywhereStillAlign) {
  Gpu gpu(64 * kMiB, {.virtual_memory = false, .plain_alignment = 512});
  const Allocation a = Get(gpu.pool(), kMiB, 2 * kMiB);
  CHECK_EQ(reinterpret_cast<uintptr_t>(a.ptr) % (2 * kMiB), 0);
  CHECK(Free(gpu.pool(), a));
  gpu.Finish();
}

// Every call of the driver is refused in turn, once and from there on.
void RefuseEachCall(bool virtual_memory) {
  const auto program = [](Gpu& gpu, cuda::Stream s, cuda::Stream t) {
    const auto pair = [&](uint32_t name, cuda::Stream stream, size_t bytes) {
      if (const auto a = gpu.TryGet(name, bytes)) {
        gpu.Use(stream, *a);
        CHECK(Free(gpu.pool(), *a));
      }
    };
    pair(gpu.NameOf(s), s, 3 * kMiB);
    pair(gpu.NameOf(t), t, 14 * kMiB);  // takes from s
    pair(Pool::kNoStream, s, 10 * kMiB);
    pair(Pool::kNoStream, t, 10 * kMiB);
    gpu.pool().Trim();
    pair(gpu.NameOf(s), s, 3 * kMiB);
    ResetPool(gpu.pool());
    pair(gpu.NameOf(s), s, 3 * kMiB);
  };
  for (const bool once : {true, false}) {
    for (int n = 1;; ++n) {
      Gpu gpu(16 * kMiB, {.virtual_memory = virtual_memory});
      const cuda::Stream s = gpu.fake().CreateStream();
      const cuda::Stream t = gpu.fake().CreateStream();
      if (once) {
        gpu.fake().FailCall(n, cuda::kOutOfMemory);
      } else {
        gpu.fake().FailFrom(n, cuda::kOutOfMemory);
      }
      program(gpu, s, t);
      const bool failed = gpu.fake().failed_calls() > 0;
      gpu.fake().StopFailing();
      CheckCounted(gpu.pool());
      gpu.fake().CheckNoViolations();
      // All goes on as if nothing had been.
      const Allocation a = gpu.GetIn(gpu.NameOf(s), 15 * kMiB);
      gpu.Use(s, a);
      CHECK(Free(gpu.pool(), a));
      gpu.Finish();
      if (!failed) {
        CHECK(n > 20);
        break;
      }
    }
  }
}
TEST(EachCallOfTheDriverMayBeRefusedWithVirtualMemory) { RefuseEachCall(true); }
TEST(EachCallOfTheDriverMayBeRefusedWithPlainMemory) { RefuseEachCall(false); }

TEST(RandomTrafficNeverSharesABlockBetweenStreamsOutOfOrder) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Gpu gpu(24 * kMiB, {.virtual_memory = seed % 2 == 0});
    std::mt19937_64 random(seed);
    std::vector<cuda::Stream> streams(6);
    for (cuda::Stream& s : streams) s = gpu.fake().CreateStream();
    struct Live {
      cuda::Stream stream;
      Allocation allocation;
    };
    std::vector<Live> live;
    const auto drop = [&](size_t i) {
      CHECK(Free(gpu.pool(), live[i].allocation));
      live[i] = live.back();
      live.pop_back();
    };
    for (int i = 0; i < 3000; ++i) {
      const size_t which = random() % streams.size();
      cuda::Stream& stream = streams[which];
      switch (random() % 8) {
        case 0:
          gpu.fake().FinishStream(stream);
          break;
        case 1:
          if (random() % 20 == 0) {  // which must not hold anything
            for (size_t j = live.size(); j-- > 0;) {
              if (live[j].stream == stream) drop(j);
            }
            gpu.fake().DestroyStream(stream);
            stream = gpu.fake().CreateStream();
          }
          break;
        case 2:
        case 3:
        case 4:
          if (!live.empty()) drop(random() % live.size());
          break;
        default: {
          const bool ordered = random() % 10 != 0;
          const size_t bytes = size_t{256} << random() % 15;
          const auto a =
              gpu.TryGet(ordered ? gpu.NameOf(stream) : Pool::kNoStream, bytes);
          if (!a) break;
          gpu.Use(stream, *a);
          live.push_back({stream, *a});
        }
      }
      if (i % 100 == 0) CheckCounted(gpu.pool());
    }
    while (!live.empty()) drop(0);
    gpu.Finish();
  }
}

}  // namespace
}  // namespace jax_bfc::testing
