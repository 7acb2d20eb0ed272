// The loops in which every allocator of gpu.py is timed, ours and the peers'.
//
// A side is any type with
//   void* Allocate(size_t bytes);        // throws where it fails
//   void Free(void* ptr, size_t bytes);
// Nobody touches the memory, and nothing is launched: what is timed is what the
// host does. The clock is read around a loop of pairs, never around one.
#ifndef JAX_BFC_BENCHMARKS_GPU_WORKLOAD_H_
#define JAX_BFC_BENCHMARKS_GPU_WORKLOAD_H_

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "harness/clock.h"

namespace jax_bfc::bench {

enum class Workload { kSameSize, kLifo, kFreeChunks, kFreeChunksVaried };

inline constexpr size_t kSameSizeBytes = size_t{1} << 20;
inline constexpr std::array<size_t, 4> kLifoBytes = {
    size_t{64} << 10, size_t{1} << 20, size_t{4} << 20, size_t{16} << 20};

// Free chunks of slightly rising size between chunks in use, all smaller than
// the request, in one octave with it: an allocator whose bins are octaves looks
// at each of them.
inline constexpr int kFreeChunks = 10'000;
inline constexpr size_t kLeastChunkBytes = size_t{64} << 10;
inline constexpr size_t kMostChunkBytes = size_t{112} << 10;
inline constexpr size_t kRequestBytes = size_t{120} << 10;
inline constexpr int kRequests = 32;  // of different sizes, up to kRequestBytes
inline constexpr size_t kRequestStepBytes = 256;
static_assert(std::bit_width(kLeastChunkBytes) ==
              std::bit_width(kRequestBytes));
static_assert(kRequestBytes - (kRequests - 1) * kRequestStepBytes >
              kMostChunkBytes);

inline Workload WorkloadNamed(std::string_view name) {
  if (name == "same_size") return Workload::kSameSize;
  if (name == "lifo") return Workload::kLifo;
  if (name == "free_chunks") return Workload::kFreeChunks;
  if (name == "free_chunks_varied") return Workload::kFreeChunksVaried;
  throw std::runtime_error("no workload '" + std::string(name) + "'");
}

inline bool NeedsBackground(Workload workload) {
  return workload == Workload::kFreeChunks ||
         workload == Workload::kFreeChunksVaried;
}

// Of the i-th of the 2 * kFreeChunks chunks, of which every other is freed.
inline constexpr size_t ChunkBytes(int i) {
  return kLeastChunkBytes + (kMostChunkBytes - kLeastChunkBytes) *
                                static_cast<size_t>(i) / (2 * kFreeChunks);
}

// Holds the chunks between the free ones for as long as it lives.
template <typename Side>
class Background {
 public:
  explicit Background(Side& side) : side_(side), chunks_(2 * kFreeChunks) {
    for (int i = 0; i < 2 * kFreeChunks; ++i) {
      chunks_[i] = side_.Allocate(ChunkBytes(i));
    }
    // From the last to the first, and the rest the other way round: RMM's pool
    // walks its list of free blocks from the lowest address at every free.
    for (int i = 2 * kFreeChunks - 1; i > 0; i -= 2) {
      side_.Free(chunks_[i], ChunkBytes(i));
    }
  }
  ~Background() {
    for (int i = 0; i < 2 * kFreeChunks; i += 2) {
      side_.Free(chunks_[i], ChunkBytes(i));
    }
  }
  Background(const Background&) = delete;
  Background& operator=(const Background&) = delete;

 private:
  Side& side_;
  std::vector<void*> chunks_;
};

inline void Use(void* ptr) { asm volatile("" : : "r"(ptr) : "memory"); }

// Does at least `pairs` pairs; how many it did.
template <typename Side>
int64_t RunPairs(Side& side, Workload workload, int64_t pairs) {
  if (workload == Workload::kLifo) {
    const int64_t turns = (pairs + 3) / 4;
    for (int64_t i = 0; i < turns; ++i) {
      std::array<void*, kLifoBytes.size()> live;
      for (size_t k = 0; k < live.size(); ++k) {
        live[k] = side.Allocate(kLifoBytes[k]);
        Use(live[k]);
      }
      for (size_t k = live.size(); k-- > 0;) side.Free(live[k], kLifoBytes[k]);
    }
    return turns * 4;
  }
  if (workload == Workload::kFreeChunksVaried) {
    for (int64_t i = 0; i < pairs; ++i) {
      const size_t bytes =
          kRequestBytes -
          static_cast<size_t>(i * 7 % kRequests) * kRequestStepBytes;
      void* ptr = side.Allocate(bytes);
      Use(ptr);
      side.Free(ptr, bytes);
    }
    return pairs;
  }
  const size_t bytes =
      workload == Workload::kSameSize ? kSameSizeBytes : kRequestBytes;
  for (int64_t i = 0; i < pairs; ++i) {
    void* ptr = side.Allocate(bytes);
    Use(ptr);
    side.Free(ptr, bytes);
  }
  return pairs;
}

// `samples` times ns per pair, after one that is not kept. `run` does so many
// pairs as it is told, at least, and answers how many.
template <typename Run>
std::vector<double> TimeSamples(int samples, int64_t pairs, Run&& run) {
  std::vector<double> ns;
  for (int i = -1; i < samples; ++i) {
    const uint64_t begin = NowNs();
    const int64_t done = run(pairs);
    const uint64_t end = NowNs();
    if (i >= 0) {
      ns.push_back(static_cast<double>(end - begin) /
                   static_cast<double>(done));
    }
  }
  return ns;
}

// Wall time of `pairs` pairs on each of so many threads at once, each with the
// side that `make_side(index of the thread)` gives, in ns per pair and thread.
template <typename MakeSide>
double TimeThreads(int threads, Workload workload, int64_t pairs,
                   MakeSide make_side) {
  std::atomic<int> ready{0};
  std::vector<uint64_t> begin(threads), end(threads);
  std::vector<int64_t> done(threads);
  std::vector<std::exception_ptr> failures(threads);
  std::vector<std::thread> team;
  team.reserve(threads);
  for (int t = 0; t < threads; ++t) {
    team.emplace_back([&, t] {
      bool counted = false;
      try {
        auto side = make_side(t);
        RunPairs(side, workload, 64);  // caches filled, memory there
        counted = true;
        ready.fetch_add(1);
        // Not asleep: waking eight threads takes longer than many pairs.
        while (ready.load() < threads) std::this_thread::yield();
        begin[t] = NowNs();
        done[t] = RunPairs(side, workload, pairs);
        end[t] = NowNs();
      } catch (...) {
        if (!counted) ready.fetch_add(1);
        failures[t] = std::current_exception();
      }
    });
  }
  for (std::thread& thread : team) thread.join();
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
  return static_cast<double>(*std::max_element(end.begin(), end.end()) -
                             *std::min_element(begin.begin(), begin.end())) /
         static_cast<double>(done[0]);
}

}  // namespace jax_bfc::bench

#endif  // JAX_BFC_BENCHMARKS_GPU_WORKLOAD_H_
