#include "gpu/steps.h"

namespace {

constexpr unsigned kBlock = 256;

__global__ void Halve(const float* x, float* scratch, size_t count) {
  const size_t i = static_cast<size_t>(blockIdx.x) * kBlock + threadIdx.x;
  if (i < count) scratch[i] = 0.5f * x[i];
}

__global__ void AddOne(const float* scratch, float* y, size_t count) {
  const size_t i = static_cast<size_t>(blockIdx.x) * kBlock + threadIdx.x;
  if (i < count) y[i] = scratch[i] + 1.0f;
}

}  // namespace

cudaError_t LaunchStep(cudaStream_t stream, const float* x, float* scratch,
                       float* y, size_t count) {
  if (count == 0) return cudaSuccess;
  const unsigned blocks = static_cast<unsigned>((count + kBlock - 1) / kBlock);
  Halve<<<blocks, kBlock, 0, stream>>>(x, scratch, count);
  AddOne<<<blocks, kBlock, 0, stream>>>(scratch, y, count);
  return cudaGetLastError();
}
