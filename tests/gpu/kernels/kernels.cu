// CUDA handlers that take scratch.
#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "jax_bfc/scratch.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

__global__ void Scale(float* to, const float* from, size_t n, float factor) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < n;
       i += size_t{gridDim.x} * blockDim.x) {
    to[i] = factor * from[i];
  }
}

// Keeps the stream busy for this long.
__global__ void Spin(int64_t nanoseconds) {
  int64_t start;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
  for (int64_t now = start; now - start < nanoseconds;) {
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  }
}

ffi::Error Launched() {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return ffi::Error::Success();
  return ffi::Error::Internal(std::string("launch: ") +
                              cudaGetErrorString(error));
}

// y = 2 x by way of scratch, with a pause in between, so that two calls that
// use the same bytes at once spoil each other's results.
ffi::Error Double(cudaStream_t stream, jax_bfc::ScratchAllocator scratch,
                  int64_t pause_ns, ffi::Buffer<ffi::F32> x,
                  ffi::ResultBuffer<ffi::F32> y) {
  const size_t n = x.element_count();
  std::optional<float*> data = scratch.Allocate<float>(n);
  if (!data) return scratch.error();
  Scale<<<64, 256, 0, stream>>>(*data, x.typed_data(), n, 2.0f);
  if (pause_ns > 0) Spin<<<1, 1, 0, stream>>>(pause_ns);
  Scale<<<64, 256, 0, stream>>>(y->typed_data(), *data, n, 1.0f);
  return Launched();
}

// The same on the host.
ffi::Error DoubleCpu(jax_bfc::ScratchAllocator scratch, int64_t,
                     ffi::Buffer<ffi::F32> x, ffi::ResultBuffer<ffi::F32> y) {
  const size_t n = x.element_count();
  std::optional<float*> data = scratch.Allocate<float>(n);
  if (!data) return scratch.error();
  for (size_t i = 0; i < n; ++i) (*data)[i] = 2.0f * x.typed_data()[i];
  for (size_t i = 0; i < n; ++i) y->typed_data()[i] = (*data)[i];
  return ffi::Error::Success();
}

// Allocates `size` bytes as often as `where` has elements; where[i] are the
// addresses.
ffi::Error Addresses(cudaStream_t stream, jax_bfc::ScratchAllocator scratch,
                     int64_t size, int64_t alignment,
                     ffi::ResultBuffer<ffi::U64> where) {
  for (size_t i = 0; i < where->element_count(); ++i) {
    std::optional<void*> data = scratch.Allocate(
        static_cast<size_t>(size), static_cast<size_t>(alignment));
    if (!data) return scratch.error();
    const auto address = reinterpret_cast<uint64_t>(*data);
    if (cudaMemcpyAsync(where->typed_data() + i, &address, sizeof(address),
                        cudaMemcpyHostToDevice, stream) != cudaSuccess) {
      return ffi::Error::Internal("cudaMemcpyAsync");
    }
  }
  return ffi::Error::Success();
}

}  // namespace

#define BIND_DOUBLE                             \
  ffi::Ffi::Bind()                              \
      .Ctx<ffi::PlatformStream<cudaStream_t>>() \
      .Ctx<jax_bfc::ScratchAllocator>()         \
      .Attr<int64_t>("pause_ns")                \
      .Arg<ffi::Buffer<ffi::F32>>()             \
      .Ret<ffi::Buffer<ffi::F32>>()

XLA_FFI_DEFINE_HANDLER_SYMBOL(kDouble, Double, BIND_DOUBLE);
// The same for CUDA graphs.
XLA_FFI_DEFINE_HANDLER_SYMBOL(kDoubleGraph, Double, BIND_DOUBLE,
                              {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER_SYMBOL(kDoubleCpu, DoubleCpu,
                              ffi::Ffi::Bind()
                                  .Ctx<jax_bfc::ScratchAllocator>()
                                  .Attr<int64_t>("pause_ns")
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(kAddresses, Addresses,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::PlatformStream<cudaStream_t>>()
                                  .Ctx<jax_bfc::ScratchAllocator>()
                                  .Attr<int64_t>("size")
                                  .Attr<int64_t>("alignment")
                                  .Ret<ffi::Buffer<ffi::U64>>());
