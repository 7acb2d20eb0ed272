// What the handlers of both passes of attention share.
#ifndef TRANSFORMER_ATTENTION_H_
#define TRANSFORMER_ATTENTION_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "tiles.h"
#include "xla/ffi/api/ffi.h"

namespace transformer {

using Dimensions = xla::ffi::AnyBuffer::Dimensions;

// "(2, 128, 4, 32)"
inline std::string ShapeText(Dimensions dimensions) {
  std::string text = "(";
  for (int64_t size : dimensions) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(size);
  }
  return text + ")";
}

inline float ScoreScale(const AttentionShape& shape) {
  return 1.0f / std::sqrt(static_cast<float>(shape.dim));
}

// Fills in the shape from that of the operands (q first), which must all agree.
// Leading axes count as one batch.
xla::ffi::Error CheckAttention(std::initializer_list<Dimensions> operands,
                               Dimensions log_sum, AttentionShape* shape);

}  // namespace transformer

#endif  // TRANSFORMER_ATTENTION_H_
