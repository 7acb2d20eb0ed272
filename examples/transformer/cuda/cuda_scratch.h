// The five places that a CUDA kernel of this example can have its scratch from.
//
// Each kernel is written once, against Allocate<T>(count) and error() as
// jax_bfc::ScratchAllocator has them, and compiled for all five:
//   FromArena<Kernel>   jax_bfc
//   FromXla<Kernel>     xla::ffi::ScratchAllocator
//   FromOutput<Kernel>  an extra result of the custom call, of a size that Python
//                       had to know when the program was traced
//   FromAsync<Kernel>   cudaMallocAsync and cudaFreeAsync in the handler
//   FromMalloc<Kernel>  cudaMalloc and cudaFree in the handler; the latter waits
//                       for the whole device
// They exist side by side so that benchmark.py can compare them. A kernel of your
// own takes a jax_bfc::ScratchAllocator and needs nothing of this file.
#ifndef TRANSFORMER_CUDA_CUDA_SCRATCH_H_
#define TRANSFORMER_CUDA_CUDA_SCRATCH_H_

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "jax_bfc/scratch.h"
#include "scratch_common.h"
#include "xla/ffi/api/ffi.h"

namespace transformer {

// What the handlers of one source hold, for Python.
enum class Counted { kXla, kAsync, kMalloc };
inline constexpr int kCountedSources = 3;
Gauge& GaugeOf(Counted source);

// Counts what is added until it ends.
class Held {
 public:
  explicit Held(Counted source) : gauge_(GaugeOf(source)) {}
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  ~Held() { gauge_.Remove(bytes_); }
  void Add(size_t bytes) {
    gauge_.Add(bytes);
    bytes_ += bytes;
  }

 private:
  Gauge& gauge_;
  size_t bytes_ = 0;
};

class XlaScratch {
 public:
  explicit XlaScratch(ffi::ScratchAllocator& scratch) : scratch_(scratch) {}

  template <typename T>
  std::optional<T*> Allocate(size_t count) {
    const std::optional<size_t> bytes = RoundedBytes<T>(count);
    if (!bytes || *bytes > SIZE_MAX - kAlignment) return std::nullopt;
    // It refuses to align beyond 16 bytes, though it usually does: room to align
    // by hand.
    constexpr size_t kAsked = 16;
    const auto data = scratch_.Allocate(*bytes + kAlignment - kAsked, kAsked);
    if (!data || *data == nullptr) return std::nullopt;
    held_.Add(*bytes + kAlignment - kAsked);
    const auto address = reinterpret_cast<uintptr_t>(*data);
    return reinterpret_cast<T*>((address + kAlignment - 1) / kAlignment *
                                kAlignment);
  }
  ffi::Error error() const {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                      "transformer: XLA's ScratchAllocator found no memory for "
                      "scratch");
  }

 private:
  ffi::ScratchAllocator& scratch_;
  Held held_{Counted::kXla};
};

// From CUDA itself, in stream order or not.
class CudaScratch {
 public:
  CudaScratch(Counted source, cudaStream_t stream)
      : async_(source == Counted::kAsync), stream_(stream), held_(source) {}
  ~CudaScratch();

  template <typename T>
  std::optional<T*> Allocate(size_t count) {
    const std::optional<size_t> bytes = RoundedBytes<T>(count);
    if (!bytes) return std::nullopt;
    void* const data = AllocateBytes(*bytes == 0 ? kAlignment : *bytes);
    if (data == nullptr) return std::nullopt;
    return static_cast<T*>(data);
  }
  ffi::Error error() const {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                      std::string("transformer: ") +
                          (async_ ? "cudaMallocAsync: " : "cudaMalloc: ") +
                          cudaGetErrorString(error_));
  }

 private:
  void* AllocateBytes(size_t bytes);

  const bool async_;
  const cudaStream_t stream_;
  Held held_;
  std::vector<void*> allocations_;
  cudaError_t error_ = cudaErrorMemoryAllocation;
};

template <typename Kernel>
struct FromArena {
  template <typename... Rest>
  ffi::Error operator()(cudaStream_t stream, jax_bfc::ScratchAllocator scratch,
                        Rest... rest) const {
    return Kernel::Run(stream, scratch, rest...);
  }
};

template <typename Kernel>
struct FromXla {
  template <typename... Rest>
  ffi::Error operator()(cudaStream_t stream, ffi::ScratchAllocator allocator,
                        Rest... rest) const {
    XlaScratch scratch(allocator);
    return Kernel::Run(stream, scratch, rest...);
  }
};

template <typename Kernel>
struct FromOutput {
  template <typename... Rest>
  ffi::Error operator()(cudaStream_t stream,
                        ffi::Result<ffi::Buffer<ffi::U8>> workspace,
                        Rest... rest) const {
    OutputScratch scratch(workspace);
    return Kernel::Run(stream, scratch, rest...);
  }
};

template <typename Kernel, Counted kSource>
struct FromCuda {
  template <typename... Rest>
  ffi::Error operator()(cudaStream_t stream, Rest... rest) const {
    CudaScratch scratch(kSource, stream);
    return Kernel::Run(stream, scratch, rest...);
  }
};
template <typename Kernel>
using FromAsync = FromCuda<Kernel, Counted::kAsync>;
template <typename Kernel>
using FromMalloc = FromCuda<Kernel, Counted::kMalloc>;

// Allocates `count` T, and says whether it could.
template <typename T, typename Source>
bool AllocateInto(Source& scratch, size_t count, T** to) {
  const auto data = scratch.template Allocate<T>(count);
  if (!data) return false;
  *to = *data;
  return true;
}

using OnStream = ffi::PlatformStream<cudaStream_t>;

}  // namespace transformer

// Defines the handlers name_bfc, name_xla, name_output, name_async and
// name_malloc of a kernel, and name_bfc_graph and name_output_graph, which XLA may
// capture into CUDA graphs: the others' scratch would not be safe there. What
// follows the kernel is its binding after the stream and the scratch.
#define TRANSFORMER_DEFINE_CUDA_HANDLERS(name, Kernel, ...)                   \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name##_bfc, transformer::FromArena<Kernel>(), \
                                xla::ffi::Ffi::Bind()                         \
                                    .Ctx<transformer::OnStream>()             \
                                    .Ctx<jax_bfc::ScratchAllocator>()         \
                                        __VA_ARGS__);                         \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name##_xla, transformer::FromXla<Kernel>(),   \
                                xla::ffi::Ffi::Bind()                         \
                                    .Ctx<transformer::OnStream>()             \
                                    .Ctx<xla::ffi::ScratchAllocator>()        \
                                        __VA_ARGS__);                         \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(                                              \
      name##_output, transformer::FromOutput<Kernel>(),                       \
      xla::ffi::Ffi::Bind()                                                   \
          .Ctx<transformer::OnStream>()                                       \
          .Ret<xla::ffi::Buffer<xla::ffi::U8>>() __VA_ARGS__);                \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(                                              \
      name##_async, transformer::FromAsync<Kernel>(),                         \
      xla::ffi::Ffi::Bind().Ctx<transformer::OnStream>() __VA_ARGS__);        \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(                                              \
      name##_malloc, transformer::FromMalloc<Kernel>(),                       \
      xla::ffi::Ffi::Bind().Ctx<transformer::OnStream>() __VA_ARGS__);        \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(                                              \
      name##_bfc_graph, transformer::FromArena<Kernel>(),                     \
      xla::ffi::Ffi::Bind()                                                   \
          .Ctx<transformer::OnStream>()                                       \
          .Ctx<jax_bfc::ScratchAllocator>() __VA_ARGS__,                      \
      {xla::ffi::Traits::kCmdBufferCompatible});                              \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(                                              \
      name##_output_graph, transformer::FromOutput<Kernel>(),                 \
      xla::ffi::Ffi::Bind()                                                   \
          .Ctx<transformer::OnStream>()                                       \
          .Ret<xla::ffi::Buffer<xla::ffi::U8>>() __VA_ARGS__,                 \
      {xla::ffi::Traits::kCmdBufferCompatible})

#endif  // TRANSFORMER_CUDA_CUDA_SCRATCH_H_
