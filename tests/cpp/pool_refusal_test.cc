// A pool whose host has no memory for its records.
#include <array>
#include <atomic>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "fake_gpu.h"
#include "pool/pins.h"
#include "pool/slot.h"
#include "pool_fixture.h"
#include "refuse_new.h"

namespace jax_bfc::testing {
namespace {

// Nothing where the host refused; the pool then lost nothing.
std::optional<Allocation> TryGet(Pool& pool, size_t bytes, size_t alignment,
                                 KernelId kernel) {
  std::unique_ptr<OomReport> report;
  Allocation made;
  try {
    if (!pool.Allocate({kernel, bytes, alignment}, &made, &report)) {
      return std::nullopt;
    }
  } catch (const std::bad_alloc&) {
    return std::nullopt;
  }
  return made;
}

TEST(WhateverAllocationTheHostRefusesAPoolLosesNothing) {
  const std::array<size_t, 6> sizes = {100, 5 * kMiB, 300, 2 * kMiB, 4000, 1};
  int rounds = 0;
  for (const uint64_t in_a_row : {1, 3, 1000}) {
    for (Refusals refusals(in_a_row); refusals.Next(); ++rounds) {
      const KernelId kernel = TestKernel();
      Pool& pool = NewPool();
      // Arrays, since a vector of the test's own would be refused too.
      std::array<std::optional<Allocation>, sizes.size()> live;
      refusals.During([&] {
        for (size_t i = 0; i < sizes.size(); ++i) {
          try {
            live[i] = TryGet(pool, sizes[i], i == 3 ? 2 * kMiB : 1, kernel);
            if (i % 2 == 1 && live[i]) {
              CHECK(Free(pool, *live[i]));
              live[i].reset();
            }
            if (i == 4) pool.Trim();
          } catch (const std::bad_alloc&) {
          }
        }
      });
      CheckCounted(pool);
      const Allocation next = Get(pool, 3 * kMiB);
      CHECK(Free(pool, next));
      for (const std::optional<Allocation>& a : live) {
        if (a) CHECK(Free(pool, *a));
      }
      CHECK_EQ(CheckCounted(pool).live, 0u);
      CHECK(ResetPool(pool));
      CHECK_EQ(pool.Stats().arena.mapped_bytes, 0u);
    }
  }
  CHECK(rounds > 10);
}

// In a stream's lane, without order, and held by a graph.
TEST(WhateverAllocationTheHostRefusesACudaPoolLosesNothing) {
  for (Refusals refusals; refusals.Next();) {
    const KernelId kernel = TestKernel();
    Gpu gpu(64 * kMiB);
    const cuda::Stream stream = gpu.fake().CreateStream();
    const uint32_t name = gpu.NameOf(stream);
    std::array<std::optional<Allocation>, 2> live;
    // Pins free what they hold in the pool that the registry knows.
    std::atomic<Pool*>& place = internal::pools[CudaPoolIndex(0)];
    place = &gpu.pool();
    auto pins = std::make_unique<Pins>();
    refusals.During([&] {
      for (size_t i = 0; i < 4; ++i) {
        std::unique_ptr<OomReport> report;
        Allocation made;
        Pool::Request request{kernel, (i + 1) * kMiB, 1};
        if (i == 0) request.stream = name;
        try {
          if (i == 3) {
            gpu.pool().Trim();
          } else if (i == 2) {
            pins->Get(gpu.pool(), 0, request, &made, &report);
          } else if (gpu.pool().Allocate(request, &made, &report)) {
            live[i] = made;
          }
        } catch (const std::bad_alloc&) {
        }
      }
      for (const std::optional<Allocation>& a : live) {
        if (a) gpu.pool().Free(a->ptr, a->id);
      }
    });
    pins.reset();
    place = nullptr;
    CHECK_EQ(gpu.pool().Stats().live, 0u);
    CHECK_EQ(gpu.pool().Stats().pinned_bytes, 0u);
    CHECK(Free(gpu.pool(), gpu.GetIn(name, 5 * kMiB)));
    gpu.Finish();
  }
}

TEST(ASlotRefusesMoreAllocationsThanItsIdsCanTell) {
  Lane lane;
  Slot slot(&lane, kCacheChunks);
  slot.most_entries = 3;
  for (int i = 0; i < 3; ++i) {
    slot.Prepare(0);
    slot.NewEntry();
  }
  bool refused = false;
  try {
    slot.Prepare(0);
  } catch (const std::length_error&) {
    refused = true;
  }
  CHECK(refused);
  slot.Retire(slot.entries[1]);
  slot.Prepare(0);
  CHECK_EQ(slot.NewEntry().index, 1u);
}

}  // namespace
}  // namespace jax_bfc::testing
