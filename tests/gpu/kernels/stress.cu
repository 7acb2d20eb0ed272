// Random scratch traffic from several threads and streams, the contents of
// every block verified: a block is filled with a pattern of its own when it is
// allocated, and read when it is freed, in stream order, with nothing waiting.
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "jax_bfc/c_api.h"

namespace {

__global__ void Fill(uint32_t* data, size_t n, uint32_t pattern) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n;
       i += size_t{gridDim.x} * blockDim.x) {
    data[i] = pattern ^ static_cast<uint32_t>(i);
  }
}

__global__ void Verify(const uint32_t* data, size_t n, uint32_t pattern,
                       unsigned long long* wrong) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n;
       i += size_t{gridDim.x} * blockDim.x) {
    if (data[i] != (pattern ^ static_cast<uint32_t>(i))) atomicAdd(wrong, 1ull);
  }
}

struct Block {
  jax_bfc_allocation allocation;
  size_t words;
  uint32_t pattern;
};

struct Shared {
  const jax_bfc_api* api;
  std::chrono::steady_clock::time_point end;
  size_t largest_bytes;
  int device;
  unsigned long long* wrong;  // in host memory, which no pool hands out
  std::atomic<long long> blocks{0};
  std::atomic<long long> refused{0};
  std::atomic<int> failed{0};
};

void Traffic(Shared& shared, uint64_t seed) {
  const auto fail = [&](const char* what) {
    std::fprintf(stderr, "stress, seed %llu: %s: %s, %s\n",
                 static_cast<unsigned long long>(seed), what,
                 shared.api->last_error(),
                 cudaGetErrorString(cudaGetLastError()));
    ++shared.failed;
  };
  std::mt19937_64 random(seed);
  cudaStream_t stream;
  jax_bfc_context context;
  const auto open = [&] {
    return cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) ==
               cudaSuccess &&
           shared.api->open_stream(JAX_BFC_CUDA, shared.device, stream,
                                   "stress", 6, &context) == JAX_BFC_OK;
  };
  if (cudaSetDevice(shared.device) != cudaSuccess || !open())
    return fail("start");
  std::vector<Block> live;
  const auto free_one = [&](size_t i) {
    const Block block = live[i];
    live[i] = live.back();
    live.pop_back();
    Verify<<<32, 256, 0, stream>>>(static_cast<uint32_t*>(block.allocation.ptr),
                                   block.words, block.pattern, shared.wrong);
    if (shared.api->free(block.allocation.ptr, block.allocation.id) !=
        JAX_BFC_OK) {
      fail("free");
    }
  };
  for (int i = 0; std::chrono::steady_clock::now() < shared.end; ++i) {
    if (shared.failed > 0) break;
    if (live.size() < 12 && random() % 2 == 0) {
      const double log_size = std::uniform_real_distribution<>(
          std::log(256.0),
          std::log(static_cast<double>(shared.largest_bytes)))(random);
      Block block;
      block.words = static_cast<size_t>(std::exp(log_size)) / 4;
      block.pattern = static_cast<uint32_t>(random());
      const jax_bfc_status status = shared.api->allocate(
          &context, block.words * 4, 256, &block.allocation);
      if (status == JAX_BFC_RESOURCE_EXHAUSTED) {
        ++shared.refused;
        if (!live.empty()) free_one(0);
        continue;
      }
      if (status != JAX_BFC_OK) return fail("allocate");
      Fill<<<32, 256, 0, stream>>>(static_cast<uint32_t*>(block.allocation.ptr),
                                   block.words, block.pattern);
      live.push_back(block);
      ++shared.blocks;
    } else if (!live.empty()) {
      free_one(random() % live.size());
    }
    // Other streams come, and handles are used again.
    if (i % 2000 == 1999) {
      while (!live.empty()) free_one(0);
      if (cudaStreamDestroy(stream) != cudaSuccess || !open()) {
        return fail("another stream");
      }
    }
  }
  while (!live.empty()) free_one(0);
  if (cudaStreamSynchronize(stream) != cudaSuccess) fail("synchronize");
  cudaStreamDestroy(stream);
}

}  // namespace

// Runs for `seconds` on a device. result: blocks verified, words wrong, requests refused.
// 0 where nothing failed.
extern "C" int Stress(int device, double seconds, int threads, uint64_t seed,
                      size_t largest_bytes, long long result[3]) {
  auto* get_api = reinterpret_cast<jax_bfc_get_api_function*>(
      dlsym(RTLD_DEFAULT, JAX_BFC_GET_API_SYMBOL));
  Shared shared;
  shared.api = get_api == nullptr ? nullptr : get_api(1, 1);
  if (shared.api == nullptr) return 100;
  shared.device = device;
  shared.largest_bytes = largest_bytes;
  shared.end = std::chrono::steady_clock::now() +
               std::chrono::microseconds(static_cast<int64_t>(seconds * 1e6));
  if (cudaSetDevice(device) != cudaSuccess ||
      cudaHostAlloc(&shared.wrong, sizeof(*shared.wrong),
                    cudaHostAllocMapped) != cudaSuccess) {
    return 101;
  }
  *shared.wrong = 0;
  std::vector<std::thread> running;
  for (int i = 0; i < threads; ++i) {
    running.emplace_back(Traffic, std::ref(shared), seed + i);
  }
  for (std::thread& thread : running) thread.join();
  // Every thread waited for its own streams; this one for all of them.
  if (cudaDeviceSynchronize() != cudaSuccess) return 102;
  result[0] = shared.blocks;
  result[1] = static_cast<long long>(*shared.wrong);
  cudaFreeHost(shared.wrong);
  result[2] = shared.refused;
  return shared.failed;
}
