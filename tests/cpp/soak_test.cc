// Everything at once on 16 threads. A second by default; longer:
//   JAX_BFC_TEST_SECONDS=600 soak_test
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "check.h"
#include "pool/registry.h"
#include "pool_fixture.h"

namespace jax_bfc::testing {
namespace {

constexpr int kAllocating = 11;
constexpr uint32_t kPools = 3;

DeviceConfig Limit(size_t bytes, HugePages huge_pages, bool preallocate) {
  DeviceConfig config;
  config.pool.limit_bytes = bytes;
  config.pool.huge_pages = huge_pages;
  config.pool.preallocate = preallocate;
  return config;
}

// What one thread holds has its own mark in every word, until it is freed.
void Allocate(uint64_t seed, const std::atomic<bool>& stop,
              std::atomic<uint64_t>& wrong, std::atomic<uint64_t>& served) {
  std::mt19937_64 random(seed);
  struct Held {
    Pool* pool;
    Allocation allocation;
    size_t words;
    uint64_t mark;
  };
  std::vector<Held> held;
  const auto free_one = [&](size_t i) {
    const auto* words = static_cast<const uint64_t*>(held[i].allocation.ptr);
    for (size_t k = 0; k < held[i].words; k += 61) {
      if (words[k] != held[i].mark) wrong.fetch_add(1);
    }
    if (!Free(*held[i].pool, held[i].allocation)) wrong.fetch_add(1);
    held[i] = held.back();
    held.pop_back();
  };
  while (!stop) {
    if (held.size() > 20 || (!held.empty() && random() % 2 == 0)) {
      free_one(random() % held.size());
      continue;
    }
    Pool& pool = HostPool(static_cast<uint32_t>(random() % kPools));
    const size_t bytes =
        8 * (1 + random() % (random() % 8 == 0 ? 1 << 17 : 500));
    std::unique_ptr<OomReport> report;
    Allocation made;
    if (!pool.Allocate({TestKernel(), bytes, size_t{1} << random() % 13}, &made,
                       &report)) {
      continue;
    }
    served.fetch_add(1, std::memory_order_relaxed);
    const uint64_t mark = random();
    auto* words = static_cast<uint64_t*>(made.ptr);
    for (size_t k = 0; k < bytes / 8; k += 61) words[k] = mark;
    held.push_back({&pool, made, bytes / 8, mark});
  }
  while (!held.empty()) free_one(held.size() - 1);
}

TEST(EverythingAtOnceKeepsEveryWordAndCount) {
  const char* asked = std::getenv("JAX_BFC_TEST_SECONDS");
  const int seconds = asked != nullptr ? std::atoi(asked) : 1;
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> wrong{0};
  std::atomic<uint64_t> served{0};
  std::atomic<uint64_t> configured{0};
  std::atomic<uint64_t> recorded{0};
  const auto repeat = [&](std::function<void(std::mt19937_64&)> body) {
    return [&stop, body] {
      std::mt19937_64 random(7);
      while (!stop) body(random);
    };
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < kAllocating; ++i) {
    threads.emplace_back(
        [&, i] { Allocate(static_cast<uint64_t>(i), stop, wrong, served); });
  }
  threads.emplace_back(repeat([&](std::mt19937_64& random) {
    const std::optional<uint32_t> index =
        random() % 2 == 0 ? std::nullopt
                          : std::optional<uint32_t>(random() % kPools);
    const DeviceConfig config =
        Limit((64 + random() % 64) * kMiB,
              random() % 2 == 0 ? HugePages::kOff : HugePages::kAuto,
              random() % 4 == 0);
    if (!Configure(index, config)) configured.fetch_add(1);
  }));
  threads.emplace_back(repeat([](std::mt19937_64& random) {
    HostPool(static_cast<uint32_t>(random() % kPools)).Trim();
  }));
  threads.emplace_back(repeat([](std::mt19937_64& random) {
    Reset(static_cast<uint32_t>(random() % kPools));  // mostly refused
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }));
  threads.emplace_back(repeat([&](std::mt19937_64&) {
    if (!StartRecording({.file = -1, .kept_blocks = 4})) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
      if (const auto blocks = StopRecording()) {
        MergeEvents(*blocks, -1, [&](const Event&) { recorded.fetch_add(1); });
      }
    }
  }));
  threads.emplace_back(repeat([](std::mt19937_64& random) {
    Pool& pool = HostPool(static_cast<uint32_t>(random() % kPools));
    const uint64_t block = pool.OpenPeak();
    pool.Stats();
    pool.Kernels();
    pool.Snapshot();
    pool.ReadPeak(block);
    pool.ResetPeaks();
    pool.ClosePeak(block);
  }));
  std::this_thread::sleep_for(std::chrono::seconds(seconds));
  stop = true;
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(wrong.load(), 0u);
  CHECK(served.load() > 100);
  CHECK(configured.load() > 0);
  CHECK(recorded.load() > 0);
  for (uint32_t i = 0; i < kPools; ++i) {
    CHECK_EQ(CheckCounted(HostPool(i)).live, 0u);
    CHECK_EQ(HostPool(i).Stats().bytes_in_use, 0u);
  }
  CHECK_EQ(Reset(std::nullopt).value_or(""), "");
}

}  // namespace
}  // namespace jax_bfc::testing
