// Turns what CUDA answers into exceptions that say which call failed, and how.
#ifndef JAX_BFC_BENCHMARKS_GPU_CUDA_CHECK_H_
#define JAX_BFC_BENCHMARKS_GPU_CUDA_CHECK_H_

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace jax_bfc::bench {

inline void CheckCuda(cudaError_t error, const char* call) {
  if (error == cudaSuccess) [[likely]] {
    return;
  }
  static_cast<void>(cudaGetLastError());  // or the next call reports it again
  throw std::runtime_error(std::string(call) + " answered " +
                           cudaGetErrorName(error) + ": " +
                           cudaGetErrorString(error));
}

}  // namespace jax_bfc::bench

#define CHECK_CUDA(call) ::jax_bfc::bench::CheckCuda((call), #call)

#endif  // JAX_BFC_BENCHMARKS_GPU_CUDA_CHECK_H_
