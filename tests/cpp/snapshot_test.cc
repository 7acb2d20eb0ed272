// The map of a pool.
#include "pool/snapshot.h"

#include <map>
#include <thread>
#include <vector>

#include "check.h"
#include "pool_fixture.h"

namespace jax_bfc::testing {
namespace {

// Bytes by state, after checking that each region is tiled.
std::map<ByteState, size_t> CheckTiled(const PoolSnapshot& snapshot) {
  std::map<ByteState, size_t> bytes;
  for (const SnapshotLane& lane : snapshot.lanes) {
    uintptr_t end = 0;
    for (const SnapshotChunk& chunk : lane.chunks) {
      if (!chunk.starts_region) CHECK_EQ(chunk.address, end);
      CHECK(chunk.bytes > 0);
      CHECK(chunk.requested_bytes <= chunk.bytes);
      end = chunk.address + chunk.bytes;
      bytes[chunk.state] += chunk.bytes;
    }
  }
  return bytes;
}

TEST(ASnapshotSaysWhatEveryByteIs) {
  Pool& pool = NewPool();
  CHECK(pool.Snapshot().lanes.empty());
  const KernelId kernel = InternKernel("snapshot");
  const Allocation held = Get(pool, 1000, 1, kernel);
  const Allocation cached = Get(pool, 2000, 1, kernel);
  CHECK(Free(pool, cached));
  const PoolStats before = CheckCounted(pool);
  const PoolSnapshot snapshot = pool.Snapshot();
  CHECK(Same(CheckCounted(pool), before));  // the cache is as it was
  CHECK_EQ(snapshot.limit_bytes, kLimit);
  CHECK_EQ(snapshot.lanes.size(), 1);
  const std::vector<SnapshotChunk>& chunks = snapshot.lanes[0].chunks;
  CHECK_EQ(chunks.size(), 4);
  CHECK_EQ(chunks[0].address, reinterpret_cast<uintptr_t>(held.ptr));
  CHECK(chunks[0].state == ByteState::kInUse);
  CHECK(chunks[0].starts_region);
  CHECK_EQ(chunks[0].requested_bytes, 1000);
  CHECK_EQ(chunks[0].kernel, kernel);
  CHECK(chunks[1].state == ByteState::kCached);
  CHECK_EQ(chunks[1].bytes, 2048);
  CHECK(chunks[2].state == ByteState::kFree);
  CHECK(!chunks[2].kernel);
  CHECK(chunks[3].state == ByteState::kUnmapped);
  std::map<ByteState, size_t> bytes = CheckTiled(snapshot);
  CHECK_EQ(bytes[ByteState::kInUse], before.bytes_in_use);
  CHECK_EQ(bytes[ByteState::kCached], before.cached_bytes);
  CHECK_EQ(bytes[ByteState::kFree], before.arena.free_bytes);
  CHECK(Free(pool, held));
}

TEST(SnapshotsAreWholeWhileOthersAllocate) {
  Pool& pool = NewPool();
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&, i] {
      for (size_t j = 0; !stop; ++j) {
        CHECK(Free(pool, Get(pool, (j * 7919 + i) % (256 * kKiB))));
      }
    });
  }
  for (int i = 0; i < 200; ++i) {
    std::map<ByteState, size_t> bytes = CheckTiled(pool.Snapshot());
    CHECK(bytes[ByteState::kInUse] <= 3 * 256 * kKiB);
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(CheckTiled(pool.Snapshot())[ByteState::kInUse], 0);
}

}  // namespace
}  // namespace jax_bfc::testing
