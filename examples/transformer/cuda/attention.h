// Attention on the GPU: what its handlers hand to its kernels.
//
// q, k, v, out and their gradients are [batch, time, heads, dim], the logarithms
// of sums [batch, heads, time]. Training is causal. All of it is split over the
// sums' long axis too ("split-K"): each block of threads takes at most
// `split_length` keys (or queries, for the gradients by k and v), and leaves a
// part of the result in scratch for a second kernel to put together. That bounds
// the longest block, where causal rows differ a thousandfold in work, and fills
// the GPU where there are few rows.
#ifndef TRANSFORMER_CUDA_ATTENTION_H_
#define TRANSFORMER_CUDA_ATTENTION_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "element.h"

namespace transformer {

inline constexpr int kTile = 64;  // rows of a block of threads
inline constexpr int kMaxDim = 128;

struct AttentionShape {
  int64_t batch = 1, time = 0, heads = 0, dim = 0;

  __host__ __device__ int64_t rows() const { return batch * heads * time; }
  __host__ __device__ int64_t tiles() const {
    return (time + kTile - 1) / kTile;
  }
};

// Blocks that keep the GPU busy: two for each multiprocessor of a large one.
inline constexpr int64_t kWantedBlocks = 264;
inline constexpr int64_t kShortestSplit = 128, kLongestSplit = 1024;
static_assert(kShortestSplit % kTile == 0 && kLongestSplit % kTile == 0);

// Keys of one split in training: as long as leaves enough blocks. Depends on the
// shape alone, so that Python can ask for the workspace when it traces.
inline int64_t SplitLength(const AttentionShape& shape) {
  int64_t length = kLongestSplit;
  while (length > kShortestSplit &&
         shape.batch * shape.heads * shape.tiles() *
                 ((shape.time + length - 1) / length) <
             kWantedBlocks) {
    length /= 2;
  }
  return length;
}
inline int64_t Splits(const AttentionShape& shape) {
  const int64_t length = SplitLength(shape);
  return (shape.time + length - 1) / length;
}

struct AttentionForwardArgs {
  AttentionShape shape;
  Element element;
  bool vectors;  // every row is aligned to 16 bytes
  const void *q, *k, *v;
  void* out;
  float* log_sum;
  int64_t split_length, splits;
  // Scratch, where there is more than one split: [splits, batch, heads, time, dim]
  // and [splits, batch, heads, time].
  float *partial_out, *partial_log_sum;
};
cudaError_t AttentionForward(const AttentionForwardArgs& args,
                             cudaStream_t stream);

struct AttentionBackwardArgs {
  AttentionShape shape;
  Element element;
  bool vectors;
  const void *q, *k, *v, *out, *d_out;
  const float* log_sum;
  void *d_q, *d_k, *d_v;
  int64_t split_length, splits;
  // Scratch: sums of out * d_out [batch, heads, time]; and two of
  // [splits, batch, heads, time, dim], first for d_k and d_v, then one for d_q.
  float* delta;
  float* partial[2];
};
cudaError_t AttentionBackward(const AttentionBackwardArgs& args,
                              cudaStream_t stream);

// One query [batch, heads, dim] for each sequence against the keys and values
// [batch, time, heads, dim] at positions up to *position (on the device).
inline constexpr int kDecodeSplit = 128;  // keys of a block of threads
struct DecodeArgs {
  AttentionShape shape;
  Element element;
  bool vectors;
  const void *q, *k, *v;
  const int32_t* position;
  void* out;
  // Scratch: [splits, batch, heads, dim] and [splits, batch, heads].
  float *partial_out, *partial_log_sum;
};
inline int64_t DecodeSplits(const AttentionShape& shape) {
  return (shape.time + kDecodeSplit - 1) / kDecodeSplit;
}
cudaError_t Decode(const DecodeArgs& args, cudaStream_t stream);

// Puts `splits` parts of softmax-weighted sums together by the logarithms of
// their sums. Row r is (batch, head, i) = (r / time / heads, r / time % heads,
// r % time) in the parts and (batch, i, head) in `out`. Splits that begin after
// the tile of a causal row are not read, nor are those whose logarithm is
// -infinity. `log_sum` may be null.
struct CombineArgs {
  AttentionShape shape;
  Element element;
  int64_t splits, split_length;
  bool causal;
  const float *partial_out, *partial_log_sum;
  void* out;
  float* log_sum;
};
cudaError_t Combine(const CombineArgs& args, cudaStream_t stream);

// Adds up the parts of a gradient, those of the splits that reach a row's tile:
// up to it for queries, from it on for keys.
struct SumPartsArgs {
  AttentionShape shape;
  Element element;
  int64_t splits, split_length;
  bool of_keys;
  const float* partial;
  void* out;
};
cudaError_t SumParts(const SumPartsArgs& args, cudaStream_t stream);

}  // namespace transformer

#endif  // TRANSFORMER_CUDA_ATTENTION_H_
