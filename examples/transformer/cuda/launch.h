// Starting kernels with every error looked at, and the few facts of a GPU that
// sizes are chosen by. For nvcc only.
#ifndef TRANSFORMER_CUDA_LAUNCH_H_
#define TRANSFORMER_CUDA_LAUNCH_H_

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace transformer {

// What a block may have of shared memory without asking.
inline constexpr size_t kFreeSharedBytes = 48 * 1024;

// Starts `kernel` on the stream. The error is that of the start; what goes wrong
// while it runs is found by whoever waits for the stream.
template <typename... Parameters, typename... Arguments>
cudaError_t Launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads,
                   size_t shared_bytes, cudaStream_t stream,
                   const Arguments&... arguments) {
  if (shared_bytes > kFreeSharedBytes) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes));
    if (error != cudaSuccess) {
      cudaGetLastError();  // this one is reported here, not by the next call
      return error;
    }
  }
  kernel<<<grid, threads, shared_bytes, stream>>>(arguments...);
  return cudaGetLastError();
}

__host__ __device__ constexpr int64_t CeilDiv(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace transformer

#endif  // TRANSFORMER_CUDA_LAUNCH_H_
