// Dynamic quantisation to 8 bits, and back from sums of 32, around the int8
// product of cuBLASLt.
//
// Rows of x (activations) and columns of w (weights) each get a scale of their
// own: the largest magnitude over 127. w is stored transposed, as cuBLASLt wants
// it for int8. Sizes are padded to multiples of kPad with zeros, since it
// takes no others.
#ifndef TRANSFORMER_CUDA_QUANTISE_H_
#define TRANSFORMER_CUDA_QUANTISE_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "element.h"

namespace transformer {

inline constexpr int64_t kPad = 32;

struct QuantisedArgs {
  int64_t rows, depth, columns;
  Element element;
  const void *x, *w;  // [rows, depth], [depth, columns]
  float* y;           // [rows, columns]
  // Scratch: [padded_rows, padded_depth] and [padded_columns, padded_depth];
  // largest magnitudes of rows and columns; [padded_rows, padded_columns].
  int8_t *x_whole, *w_whole;
  float *x_largest, *w_largest;
  int32_t* product;

  static int64_t Padded(int64_t size) {
    return (size + kPad - 1) / kPad * kPad;
  }
};

// x_whole, x_largest, w_whole and w_largest.
cudaError_t Quantise(const QuantisedArgs& args, cudaStream_t stream);
// y from the product and the largest magnitudes.
cudaError_t Dequantise(const QuantisedArgs& args, cudaStream_t stream);

}  // namespace transformer

#endif  // TRANSFORMER_CUDA_QUANTISE_H_
