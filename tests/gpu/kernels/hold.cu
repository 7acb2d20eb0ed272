#include <chrono>
#include <cstdint>
#include <thread>

#include "hold.h"

namespace {

constexpr int64_t kMostNanoseconds = 20'000'000'000;

volatile int* gate = nullptr;  // 0: open

__device__ int64_t Now() {
  int64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

__global__ void Hold(const volatile int* closed, int64_t most) {
  const int64_t start = Now();
  while (*closed != 0 && Now() - start < most) {
  }
}

}  // namespace

bool MakeHold() {
  static void* const made = [] {
    void* memory = nullptr;
    const unsigned flags = cudaHostAllocMapped | cudaHostAllocPortable;
    if (cudaHostAlloc(&memory, sizeof(int), flags) != cudaSuccess) {
      memory = nullptr;
    } else {
      *static_cast<int*>(memory) = 0;
    }
    return memory;
  }();
  gate = static_cast<volatile int*>(made);
  return gate != nullptr;
}

cudaError_t LaunchHold(cudaStream_t stream) {
  Hold<<<1, 1, 0, stream>>>(gate, kMostNanoseconds);
  return cudaGetLastError();
}

extern "C" {

// False where there is no gate.
bool HoldClose() {
  if (!MakeHold()) return false;
  *gate = 1;
  return true;
}

// Now, or so many milliseconds later, whatever the caller waits for by then.
void HoldOpen(int milliseconds) {
  if (milliseconds == 0) {
    *gate = 0;
    return;
  }
  std::thread([milliseconds] {
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
    *gate = 0;
  }).detach();
}

// The stream is busy from now on. A cudaError_t.
int HoldStream(void* stream) {
  return LaunchHold(static_cast<cudaStream_t>(stream));
}

}  // extern "C"
