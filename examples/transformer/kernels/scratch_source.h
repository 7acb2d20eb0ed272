// The three places that a kernel of this example can have its scratch from.
//
// Each kernel is written once, against Allocate<T>(count) and error() as
// jax_bfc::ScratchAllocator has them, and compiled for all three:
//   FromArena<Kernel>   jax_bfc
//   FromMalloc<Kernel>  malloc and free in the handler
//   FromOutput<Kernel>  an extra result of the custom call, of a size that
//                       Python had to know when the program was traced
// They exist side by side so that benchmark.py can compare them. A kernel of
// your own takes a jax_bfc::ScratchAllocator and needs nothing of this file.
#ifndef TRANSFORMER_SCRATCH_SOURCE_H_
#define TRANSFORMER_SCRATCH_SOURCE_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "jax_bfc/scratch.h"
#include "scratch_common.h"
#include "xla/ffi/api/ffi.h"

namespace transformer {

class MallocScratch {
 public:
  MallocScratch() = default;
  MallocScratch(const MallocScratch&) = delete;
  MallocScratch& operator=(const MallocScratch&) = delete;
  ~MallocScratch();

  template <typename T>
  std::optional<T*> Allocate(size_t count) {
    return Cast<T>(AllocateBytes(RoundedBytes<T>(count)));
  }
  ffi::Error error() const {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                      "transformer: malloc found no memory for scratch");
  }

 private:
  void* AllocateBytes(std::optional<size_t> bytes);
  template <typename T>
  static std::optional<T*> Cast(void* data) {
    if (data == nullptr) return std::nullopt;
    return static_cast<T*>(data);
  }

  std::vector<void*> allocations_;
  size_t bytes_ = 0;
};

template <typename Kernel>
struct FromArena {
  template <typename... Rest>
  ffi::Error operator()(ffi::ThreadPool pool, jax_bfc::ScratchAllocator scratch,
                        Rest... rest) const {
    return Kernel::Run(pool, scratch, rest...);
  }
};

template <typename Kernel>
struct FromMalloc {
  template <typename... Rest>
  ffi::Error operator()(ffi::ThreadPool pool, Rest... rest) const {
    MallocScratch scratch;
    return Kernel::Run(pool, scratch, rest...);
  }
};

template <typename Kernel>
struct FromOutput {
  template <typename... Rest>
  ffi::Error operator()(ffi::ThreadPool pool,
                        ffi::Result<ffi::Buffer<ffi::U8>> workspace,
                        Rest... rest) const {
    OutputScratch scratch(workspace);
    return Kernel::Run(pool, scratch, rest...);
  }
};

}  // namespace transformer

// Defines the handlers name_bfc, name_malloc and name_output of a kernel. What
// follows the kernel is its binding after the thread pool and the scratch.
#define TRANSFORMER_DEFINE_HANDLERS(name, Kernel, binding)                    \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name##_bfc, transformer::FromArena<Kernel>(), \
                                xla::ffi::Ffi::Bind()                         \
                                    .Ctx<xla::ffi::ThreadPool>()              \
                                    .Ctx<jax_bfc::ScratchAllocator>()         \
                                        binding);                             \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(                                              \
      name##_malloc, transformer::FromMalloc<Kernel>(),                       \
      xla::ffi::Ffi::Bind().Ctx<xla::ffi::ThreadPool>() binding);             \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(                                              \
      name##_output, transformer::FromOutput<Kernel>(),                       \
      xla::ffi::Ffi::Bind()                                                   \
          .Ctx<xla::ffi::ThreadPool>()                                        \
          .Ret<xla::ffi::Buffer<xla::ffi::U8>>() binding)

#endif  // TRANSFORMER_SCRATCH_SOURCE_H_
