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
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "jax_bfc/scratch.h"
#include "xla/ffi/api/ffi.h"

namespace transformer {

namespace ffi = xla::ffi;

// Aligned as the arena aligns, so that what differs is where memory comes from.
inline constexpr size_t kAlignment = 256;

// The bytes of `count` T rounded up to kAlignment, or nothing where that is
// more than a size_t can count.
template <typename T>
std::optional<size_t> RoundedBytes(size_t count) {
  if (count > (SIZE_MAX - kAlignment) / sizeof(T)) return std::nullopt;
  return (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
}

// The product of sizes, or SIZE_MAX, which Allocate() refuses, where it is
// more.
inline size_t Count(std::initializer_list<int64_t> sizes) {
  size_t product = 1;
  for (int64_t size : sizes) {
    if (size < 0 ||
        __builtin_mul_overflow(product, static_cast<size_t>(size), &product)) {
      return SIZE_MAX;
    }
  }
  return product;
}

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

// Cuts pieces off a buffer that XLA allocated; without a buffer it only adds up
// what a kernel would take, which is how Python learns the size.
class OutputScratch {
 public:
  OutputScratch() = default;
  explicit OutputScratch(ffi::Result<ffi::Buffer<ffi::U8>> workspace)
      : data_(workspace->typed_data()), size_(workspace->element_count()) {}

  template <typename T>
  std::optional<T*> Allocate(size_t count) {
    const std::optional<size_t> bytes = RoundedBytes<T>(count);
    if (!bytes || *bytes > size_ - used_) return std::nullopt;
    const size_t offset = used_;
    used_ += *bytes;
    if (data_ == nullptr) return static_cast<T*>(nullptr);
    return reinterpret_cast<T*>(data_ + offset);
  }
  ffi::Error error() const {
    return ffi::Error::InvalidArgument(
        "transformer: the workspace output has " + std::to_string(size_) +
        " bytes, and the kernel needs more. Trace the program again for these "
        "shapes and this number of threads.");
  }
  size_t used() const { return used_; }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = SIZE_MAX;
  size_t used_ = 0;
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
