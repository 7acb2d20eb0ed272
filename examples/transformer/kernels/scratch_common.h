// What the sources of scratch on the CPU and on the GPU share: sizes that cannot
// overflow, scratch cut off an extra output, and a count of what is held.
#ifndef TRANSFORMER_SCRATCH_COMMON_H_
#define TRANSFORMER_SCRATCH_COMMON_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

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

// Bytes that handlers hold, and the most that they held at once: what
// jax_bfc.memory_stats() shows by itself has to be counted by hand elsewhere.
class Gauge {
 public:
  void Add(size_t bytes) {
    const size_t now = in_use_.fetch_add(bytes) + bytes;
    size_t peak = peak_.load();
    while (now > peak && !peak_.compare_exchange_weak(peak, now)) {
    }
  }
  void Remove(size_t bytes) { in_use_.fetch_sub(bytes); }
  void ResetPeak() { peak_ = in_use_.load(); }
  size_t peak() const { return peak_.load(); }

 private:
  std::atomic<size_t> in_use_{0};
  std::atomic<size_t> peak_{0};
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

}  // namespace transformer

#endif  // TRANSFORMER_SCRATCH_COMMON_H_
