// Softmax over the last axis on a CUDA GPU. A row's exponentials stay in
// scratch, in double precision, until their sum is known.
#include <cuda_runtime.h>

#include "jax_bfc/scratch.h"

namespace ffi = xla::ffi;

// One block a row: 256 threads walk it, and add up through shared memory.
__global__ void RowSoftmaxKernel(const float* x, float* y, double* scratch,
                                 size_t columns) {
  __shared__ double partial[256];
  const float* in = x + blockIdx.x * columns;
  double* row = scratch + blockIdx.x * columns;
  const auto reduce = [&](double value, auto&& join) {
    partial[threadIdx.x] = value;
    for (int half = 128; half > 0; half /= 2) {
      __syncthreads();
      if (threadIdx.x < half) {
        partial[threadIdx.x] =
            join(partial[threadIdx.x], partial[threadIdx.x + half]);
      }
    }
    __syncthreads();
    const double all = partial[0];
    __syncthreads();
    return all;
  };
  double largest = in[0];
  for (size_t i = threadIdx.x; i < columns; i += 256)
    if (in[i] > largest) largest = in[i];
  largest = reduce(largest, [](double a, double b) { return a > b ? a : b; });
  double sum = 0;
  for (size_t i = threadIdx.x; i < columns; i += 256)
    sum += row[i] = exp(in[i] - largest);
  sum = reduce(sum, [](double a, double b) { return a + b; });
  for (size_t i = threadIdx.x; i < columns; i += 256)
    y[blockIdx.x * columns + i] = row[i] / sum;
}

static ffi::Error RowSoftmax(cudaStream_t stream,
                             jax_bfc::ScratchAllocator scratch,
                             ffi::Buffer<ffi::F32> x,
                             ffi::ResultBuffer<ffi::F32> y) {
  if (x.element_count() == 0) return ffi::Error::Success();
  if (x.dimensions().size() == 0) {
    return ffi::Error::InvalidArgument(
        "row_softmax: x needs at least one axis");
  }
  const size_t columns = x.dimensions().back();
  std::optional<double*> rows = scratch.Allocate<double>(x.element_count());
  if (!rows) return scratch.error();
  RowSoftmaxKernel<<<x.element_count() / columns, 256, 0, stream>>>(
      x.typed_data(), y->typed_data(), *rows, columns);
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return ffi::Error::Success();
  return ffi::Error::Internal(cudaGetErrorString(error));
}

// The trait lets XLA capture the call into a CUDA graph; its scratch is safe
// there.
XLA_FFI_DEFINE_HANDLER_SYMBOL(kRowSoftmax, RowSoftmax,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::PlatformStream<cudaStream_t>>()
                                  .Ctx<jax_bfc::ScratchAllocator>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>(),
                              {ffi::Traits::kCmdBufferCompatible});
