// The kernels of steps.cc.
#ifndef JAX_BFC_BENCHMARKS_GPU_STEPS_H_
#define JAX_BFC_BENCHMARKS_GPU_STEPS_H_

#include <cuda_runtime_api.h>

#include <cstddef>

// y = x / 2 + 1, by way of `count` floats of scratch.
cudaError_t LaunchStep(cudaStream_t stream, const float* x, float* scratch,
                       float* y, size_t count);

#endif  // JAX_BFC_BENCHMARKS_GPU_STEPS_H_
