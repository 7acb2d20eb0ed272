// A layer of a model whose custom kernel needs scratch, by where it comes from.
#include "gpu/steps.h"

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "jax_bfc/scratch.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

using In = ffi::Buffer<ffi::F32>;
using Out = ffi::Result<ffi::Buffer<ffi::F32>>;
using Workspace = ffi::Result<ffi::Buffer<ffi::U8>>;

ffi::Error Status(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return ffi::Error::Success();
  return ffi::Error(ffi::ErrorCode::kInternal,
                    std::string(call) + " answered " + cudaGetErrorName(error) +
                        ": " + cudaGetErrorString(error));
}

std::atomic<int64_t> calls{0};

ffi::Error Step(cudaStream_t stream, In x, void* scratch, Out y) {
  calls.fetch_add(1, std::memory_order_relaxed);
  return Status(LaunchStep(stream, x.typed_data(), static_cast<float*>(scratch),
                           y->typed_data(), x.element_count()),
                "the launch");
}

ffi::Error OnJaxBfc(cudaStream_t stream, jax_bfc::ScratchAllocator scratch,
                    int64_t bytes, In x, Out y) {
  std::optional<void*> memory = scratch.Allocate(static_cast<size_t>(bytes));
  if (!memory) return scratch.error();
  return Step(stream, x, *memory, y);
}

ffi::Error OnXla(cudaStream_t stream, ffi::ScratchAllocator scratch,
                 int64_t bytes, In x, Out y) {
  std::optional<void*> memory = scratch.Allocate(static_cast<size_t>(bytes));
  if (!memory) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "XLA has no scratch");
  }
  return Step(stream, x, *memory, y);
}

ffi::Error OnOutput(cudaStream_t stream, int64_t, In x, Out y,
                    Workspace workspace) {
  return Step(stream, x, workspace->typed_data(), y);
}

ffi::Error OnMallocAsync(cudaStream_t stream, int64_t bytes, In x, Out y) {
  void* memory = nullptr;
  cudaError_t error =
      cudaMallocAsync(&memory, static_cast<size_t>(bytes), stream);
  if (error != cudaSuccess) return Status(error, "cudaMallocAsync");
  ffi::Error done = Step(stream, x, memory, y);
  error = cudaFreeAsync(memory, stream);
  return done.success() ? Status(error, "cudaFreeAsync") : done;
}

ffi::Error OnMalloc(cudaStream_t stream, int64_t bytes, In x, Out y) {
  void* memory = nullptr;
  cudaError_t error = cudaMalloc(&memory, static_cast<size_t>(bytes));
  if (error != cudaSuccess) return Status(error, "cudaMalloc");
  ffi::Error done = Step(stream, x, memory, y);
  error = cudaFree(memory);  // waits for the kernels
  return done.success() ? Status(error, "cudaFree") : done;
}

// One buffer for all, made at the first call, never larger and never freed.
ffi::Error OnFixed(cudaStream_t stream, int64_t bytes, In x, Out y) {
  static void* memory = nullptr;
  static const auto size = static_cast<size_t>(bytes);
  static const cudaError_t error = cudaMalloc(&memory, size);
  if (error != cudaSuccess) return Status(error, "cudaMalloc");
  if (static_cast<size_t>(bytes) > size) {
    return ffi::Error(ffi::ErrorCode::kInvalidArgument,
                      "the fixed buffer is too small");
  }
  return Step(stream, x, memory, y);
}

auto Plain() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::PlatformStream<cudaStream_t>>()
      .Attr<int64_t>("bytes")
      .Arg<In>()
      .Ret<ffi::Buffer<ffi::F32>>();
}

template <typename Scratch>
auto WithScratch() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::PlatformStream<cudaStream_t>>()
      .template Ctx<Scratch>()
      .template Attr<int64_t>("bytes")
      .template Arg<In>()
      .template Ret<ffi::Buffer<ffi::F32>>();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(gpu_step_jax_bfc, OnJaxBfc,
                              WithScratch<jax_bfc::ScratchAllocator>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(gpu_step_xla, OnXla,
                              WithScratch<ffi::ScratchAllocator>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(gpu_step_output, OnOutput,
                              Plain().Ret<ffi::Buffer<ffi::U8>>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(gpu_step_malloc_async, OnMallocAsync, Plain());
XLA_FFI_DEFINE_HANDLER_SYMBOL(gpu_step_malloc, OnMalloc, Plain());

// The same for CUDA graphs.
XLA_FFI_DEFINE_HANDLER_SYMBOL(gpu_step_jax_bfc_graph, OnJaxBfc,
                              WithScratch<jax_bfc::ScratchAllocator>(),
                              {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER_SYMBOL(gpu_step_xla_graph, OnXla,
                              WithScratch<ffi::ScratchAllocator>(),
                              {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER_SYMBOL(gpu_step_output_graph, OnOutput,
                              Plain().Ret<ffi::Buffer<ffi::U8>>(),
                              {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER_SYMBOL(gpu_step_fixed_graph, OnFixed, Plain(),
                              {ffi::Traits::kCmdBufferCompatible});

// How often a handler of these was called so far.
extern "C" int64_t gpu_step_calls() { return calls; }
