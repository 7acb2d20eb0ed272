// One CUDA stream for each thread of a benchmark, made once and kept: a stream
// that is made anew each time would be a new one to every allocator.
#ifndef JAX_BFC_BENCHMARKS_GPU_STREAMS_H_
#define JAX_BFC_BENCHMARKS_GPU_STREAMS_H_

#include <cuda_runtime_api.h>

#include <vector>

#include "gpu/cuda_check.h"

namespace jax_bfc::bench {

// At least `count` streams of the current device. Not thread-safe.
inline const std::vector<cudaStream_t>& Streams(int count) {
  static auto* const streams =
      new std::vector<cudaStream_t>;  // never destroyed
  while (static_cast<int>(streams->size()) < count) {
    cudaStream_t stream;
    CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    streams->push_back(stream);
  }
  return *streams;
}

}  // namespace jax_bfc::bench

#endif  // JAX_BFC_BENCHMARKS_GPU_STREAMS_H_
