// Custom calls that use some scratch, and where they have it from.
//
// Two kinds of work, each on five kinds of memory:
//   touch  one byte of every page, the least that a kernel can do with it
//   write  all of it
// The result is one byte that was read back.
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>

#include "jax_bfc/scratch.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

constexpr size_t kPageBytes = 4096;
constexpr size_t kHugePageBytes = size_t{2} << 20;

using Result = ffi::Result<ffi::Buffer<ffi::U8>>;
using Work = void (*)(uint8_t* memory, size_t bytes);

void Touch(uint8_t* memory, size_t bytes) {
  for (size_t i = 0; i < bytes; i += kPageBytes) {
    static_cast<volatile uint8_t*>(memory)[i] = 1;
  }
}

void Write(uint8_t* memory, size_t bytes) {
  std::memset(memory, 1, bytes);
  // What is about to be freed must be written all the same.
  asm volatile("" : : "r"(memory) : "memory");
}

// ---------------------------------------------------------------------------
// Where the memory is from.

template <Work work>
ffi::Error OnScratch(jax_bfc::ScratchAllocator scratch, int64_t bytes,
                     Result result) {
  std::optional<void*> memory = scratch.Allocate(static_cast<size_t>(bytes));
  if (!memory) return scratch.error();
  auto* data = static_cast<uint8_t*>(*memory);
  work(data, static_cast<size_t>(bytes));
  result->typed_data()[0] = data[0];
  return ffi::Error::Success();
}

template <Work work>
ffi::Error OnMalloc(int64_t bytes, Result result) {
  auto* data = static_cast<uint8_t*>(std::malloc(static_cast<size_t>(bytes)));
  if (data == nullptr) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "malloc failed");
  }
  work(data, static_cast<size_t>(bytes));
  result->typed_data()[0] = data[0];
  std::free(data);
  return ffi::Error::Success();
}

template <Work work>
ffi::Error OnOutput(int64_t bytes, Result result, Result workspace) {
  uint8_t* data = workspace->typed_data();
  work(data, static_cast<size_t>(bytes));
  result->typed_data()[0] = data[0];
  return ffi::Error::Success();
}

// Kept from the first call on, every page of it present: the best case that a
// static buffer can be, and the one that malloc gives.
uint8_t* KeptHugePages(size_t bytes) {
  void* const mapped =
      mmap(nullptr, bytes + kHugePageBytes, PROT_READ | PROT_WRITE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  void* aligned = mapped;
  size_t space = bytes + kHugePageBytes;
  std::align(kHugePageBytes, bytes, aligned, space);
  madvise(aligned, bytes, MADV_HUGEPAGE);
  std::memset(aligned, 0, bytes);
  return static_cast<uint8_t*>(aligned);
}

uint8_t* KeptMalloc(size_t bytes) {
  void* const data = std::malloc(bytes);
  if (data != nullptr) std::memset(data, 0, bytes);
  return static_cast<uint8_t*>(data);
}

template <Work work, uint8_t* (*make)(size_t)>
ffi::Error OnKept(int64_t bytes, Result result) {
  static const int64_t kept_bytes = bytes;
  static uint8_t* const data = make(static_cast<size_t>(kept_bytes));
  if (data == nullptr || bytes > kept_bytes) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                      "the static buffer is too small");
  }
  work(data, static_cast<size_t>(bytes));
  result->typed_data()[0] = data[0];
  return ffi::Error::Success();
}

auto Plain() {
  return ffi::Ffi::Bind().Attr<int64_t>("bytes").Ret<ffi::Buffer<ffi::U8>>();
}

}  // namespace

#define DEFINE_HANDLERS(kind, work)                                        \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(kind##_scratch, OnScratch<work>,           \
                                ffi::Ffi::Bind()                           \
                                    .Ctx<jax_bfc::ScratchAllocator>()      \
                                    .Attr<int64_t>("bytes")                \
                                    .Ret<ffi::Buffer<ffi::U8>>());         \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(kind##_malloc, OnMalloc<work>, Plain());   \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(kind##_output, OnOutput<work>,             \
                                Plain().Ret<ffi::Buffer<ffi::U8>>());      \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(kind##_static_huge,                        \
                                (OnKept<work, KeptHugePages>), Plain());   \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(kind##_static, (OnKept<work, KeptMalloc>), \
                                Plain())

DEFINE_HANDLERS(touch, Touch);
DEFINE_HANDLERS(write, Write);
