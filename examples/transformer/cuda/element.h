// The kinds of numbers that operands may have.
#ifndef TRANSFORMER_CUDA_ELEMENT_H_
#define TRANSFORMER_CUDA_ELEMENT_H_

#include <cstddef>
#include <cstdint>

namespace transformer {

enum class Element { kF32, kBf16 };

constexpr size_t SizeOf(Element element) {
  return element == Element::kF32 ? 4 : 2;
}

// What Python passes for an element's kind when it asks for a workspace.
constexpr Element ElementOfSize(int64_t bytes) {
  return bytes == 4 ? Element::kF32 : Element::kBf16;
}

}  // namespace transformer

#endif  // TRANSFORMER_CUDA_ELEMENT_H_
