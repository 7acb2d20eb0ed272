// What the handlers ask of their operands, and how they say what is wrong.
#ifndef TRANSFORMER_CUDA_OPERANDS_H_
#define TRANSFORMER_CUDA_OPERANDS_H_

#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

#include "element.h"
#include "xla/ffi/api/ffi.h"

namespace transformer {

namespace ffi = xla::ffi;

using Any = ffi::AnyBuffer;
using AnyResult = ffi::Result<ffi::AnyBuffer>;
using F32 = ffi::Buffer<ffi::F32>;
using F32Result = ffi::Result<F32>;
using S32 = ffi::Buffer<ffi::S32>;
using S32Result = ffi::Result<S32>;

// "(2, 128, 4, 32)"
inline std::string ShapeText(ffi::AnyBuffer::Dimensions dimensions) {
  std::string text = "(";
  for (int64_t size : dimensions) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(size);
  }
  return text + ")";
}

inline ffi::Error Wrong(const std::string& kernel, const std::string& what) {
  return ffi::Error::InvalidArgument("transformer." + kernel + ": " + what);
}

// Success, or which kernel CUDA refused to start, and why.
inline ffi::Error CudaStatus(const std::string& kernel, cudaError_t error) {
  if (error == cudaSuccess) return ffi::Error::Success();
  return ffi::Error::Internal("transformer." + kernel + ": " +
                              cudaGetErrorName(error) + ": " +
                              cudaGetErrorString(error));
}

// The kind of numbers that all of them have, or nothing.
inline std::optional<Element> CommonElement(
    std::initializer_list<ffi::DataType> types) {
  const ffi::DataType first = *types.begin();
  for (ffi::DataType type : types) {
    if (type != first) return std::nullopt;
  }
  if (first == ffi::F32) return Element::kF32;
  if (first == ffi::BF16) return Element::kBf16;
  return std::nullopt;
}

inline ffi::Error WrongElement(const std::string& kernel) {
  return Wrong(kernel, "operands must all be float32 or all bfloat16");
}

// Whether 16-byte loads may be used where rows of `dim` numbers follow each other
// in all of these buffers.
inline bool RowsAreAligned(std::initializer_list<const void*> buffers,
                           int64_t dim, Element element) {
  if (dim * static_cast<int64_t>(SizeOf(element)) % 16 != 0) return false;
  for (const void* data : buffers) {
    if (reinterpret_cast<uintptr_t>(data) % 16 != 0) return false;
  }
  return true;
}

}  // namespace transformer

#endif  // TRANSFORMER_CUDA_OPERANDS_H_
