// The table of streams alone, under threads. More operations:
//   JAX_BFC_TEST_OPS=100000000 stream_table_test
#include "pool/streams/stream_table.h"

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "check.h"

namespace jax_bfc::testing {
namespace {

TEST(AStreamKeepsItsLane) {
  StreamTable table;
  const auto never = [](uint32_t, auto&&) { return false; };
  CHECK(!table.Find(7));
  const std::optional<StreamRef> ref = table.Assign(7, never);
  CHECK(ref.has_value());
  CHECK(table.Find(7) == ref);
  CHECK(table.Assign(7, never) == ref);
  CHECK(table.IsCurrent(*ref));
  CHECK_EQ(*table.StreamOf(ref->lane), 7u);
}

TEST(WhereEveryStreamUsesItsLaneANewOneGetsNone) {
  StreamTable table;
  int asked = 0;
  const auto never = [&](uint32_t, auto&&) {
    ++asked;
    return false;
  };
  for (uint64_t id = 0; id < kStreamLanes; ++id) {
    CHECK(table.Assign(id, never).has_value());
  }
  CHECK_EQ(asked, 0);
  CHECK(!table.Assign(1000, never));
  CHECK_EQ(asked, static_cast<int>(kStreamLanes));
}

TEST(ALaneThatChangesHandsMakesOldReferencesStale) {
  StreamTable table;
  const auto yes = [](uint32_t, auto&& release) {
    release();
    return true;
  };
  std::vector<StreamRef> refs;
  for (uint64_t id = 0; id < kStreamLanes; ++id) {
    refs.push_back(*table.Assign(id, yes));
  }
  const std::optional<StreamRef> added = table.Assign(1000, yes);
  CHECK(added.has_value());
  CHECK(table.IsCurrent(*added));
  int stale = 0;
  for (const StreamRef ref : refs) stale += !table.IsCurrent(ref);
  CHECK_EQ(stale, 1);
  CHECK_EQ(*table.StreamOf(added->lane), 1000u);
}

TEST(ALaneThatCouldNotBeWaitedForHasNoStream) {
  StreamTable table;
  for (uint64_t id = 0; id < kStreamLanes; ++id) {
    table.Assign(id, [](uint32_t, auto&&) { return false; });
  }
  uint32_t released = 0;
  CHECK(!table.Assign(1000, [&](uint32_t lane, auto&& release) {
    if (released == 0) {
      released = lane;
      release();
    }
    return false;
  }));
  CHECK(!table.StreamOf(released));
}

// What a pool does with the table: a lane is used under its lock, by whoever
// has a current reference, and vacated under the same lock where nobody is in
// it. JAX_BFC_TEST_OPS is how many uses, over all threads.
TEST(NoTwoStreamsAreInOneLaneAtOnce) {
  constexpr uint64_t kThreads = 64;
  constexpr uint64_t kStreams = 500;
  const char* asked = std::getenv("JAX_BFC_TEST_OPS");
  const uint64_t ops = asked != nullptr ? std::strtoull(asked, nullptr, 10)
                                        : uint64_t{1'000'000};
  struct Lane {
    Mutex mutex{LockRank::kSlot};
    int in_use = 0;
    // Who used it last, and with which reference: a plain word, so that a race
    // is one for ThreadSanitizer too.
    uint32_t generation = 0;
    uint64_t stream = ~uint64_t{0};
  };
  StreamTable table;
  std::array<Lane, 1 + kStreamLanes> lanes;
  std::atomic<uint64_t> shared{0};  // uses of a lane that was another stream's
  std::atomic<uint64_t> used{0};
  std::atomic<uint64_t> stale{0};
  std::atomic<uint64_t> moved{0};

  const auto vacate = [&](uint32_t lane, auto&& release) {
    const Guard lock(lanes[lane].mutex);
    if (lanes[lane].in_use > 0) return false;
    release();
    moved.fetch_add(1, std::memory_order_relaxed);
    return true;
  };
  const auto work = [&](uint64_t seed) {
    std::mt19937_64 random(seed);
    for (uint64_t i = 0; i < ops / kThreads; ++i) {
      // Mostly a few streams, so that lanes are found as well as moved.
      const uint64_t stream =
          random() % 4 == 0 ? random() % kStreams : random() % 40;
      std::optional<StreamRef> ref = table.Find(stream);
      if (!ref) ref = table.Assign(stream, vacate);
      if (!ref) continue;
      if (random() % 64 == 0) std::this_thread::yield();
      Lane& lane = lanes[ref->lane];
      {
        const Guard lock(lane.mutex);
        if (!table.IsCurrent(*ref)) {
          stale.fetch_add(1, std::memory_order_relaxed);
          continue;
        }
        if (lane.stream != stream) {
          if (lane.generation == ref->generation &&
              lane.stream != ~uint64_t{0}) {
            shared.fetch_add(1, std::memory_order_relaxed);
          }
          if (lane.in_use > 0) shared.fetch_add(1, std::memory_order_relaxed);
        }
        lane.stream = stream;
        lane.generation = ref->generation;
        ++lane.in_use;
      }
      used.fetch_add(1, std::memory_order_relaxed);
      const Guard lock(lane.mutex);
      --lane.in_use;
    }
  };
  std::vector<std::thread> threads;
  for (uint64_t i = 0; i < kThreads; ++i) threads.emplace_back(work, i + 1);
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(shared.load(), 0u);
  CHECK(used.load() > ops / 8);
  CHECK(moved.load() > 100);
}

}  // namespace
}  // namespace jax_bfc::testing
