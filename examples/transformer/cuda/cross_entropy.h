// Cross-entropy of hidden [rows, dim] times head [dim, vocabulary] on the GPU.
//
// The logits exist only for some rows at a time, in scratch, where cuBLASLt puts
// them and the kernels here take them from: rows of them for the loss; for the
// gradients, their own gradient, which two more products turn into those of
// hidden and head.
#ifndef TRANSFORMER_CUDA_CROSS_ENTROPY_H_
#define TRANSFORMER_CUDA_CROSS_ENTROPY_H_

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "element.h"

namespace transformer {

// Logits in scratch at once: 256 MiB of f32.
inline constexpr int64_t kMostLogits = 64 << 20;

// Rows that are done at a time.
inline int64_t ChunkRows(int64_t rows, int64_t vocabulary) {
  const int64_t most =
      std::max<int64_t>(1, kMostLogits / std::max<int64_t>(1, vocabulary));
  // As even as can be, in steps of 128 rows, which products like.
  const int64_t chunks = (rows + most - 1) / most;
  if (chunks <= 1) return rows;
  const int64_t even = (rows + chunks - 1) / chunks;
  return std::min(most, (even + 127) / 128 * 128);
}

// Of each row: loss = log_sum - logits[label], NaN where the label is none.
cudaError_t LossOfLogits(const float* logits, const int32_t* labels,
                         int64_t rows, int64_t vocabulary, float* loss,
                         float* log_sum, cudaStream_t stream);

// d_logits = (softmax(logits) - [label]) * d_loss, as the element asks.
cudaError_t GradientOfLogits(const float* logits, const int32_t* labels,
                             const float* log_sum, const float* d_loss,
                             int64_t rows, int64_t vocabulary, Element element,
                             void* d_logits, cudaStream_t stream);

// to = from, rounded to bf16.
cudaError_t RoundToBf16(const float* from, int64_t count, void* to,
                        cudaStream_t stream);

}  // namespace transformer

#endif  // TRANSFORMER_CUDA_CROSS_ENTROPY_H_
