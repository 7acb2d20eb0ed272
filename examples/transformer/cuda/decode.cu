// Attention of one query for each sequence to its cache of keys and values, as
// sampling needs it: a block of threads for each 128 keys of a head, whose parts
// are put together at the end. It is all reading: 16 bytes a lane, neighbouring
// lanes neighbouring columns, several loads under way at once.
#include "attention.h"
#include "attention_tiles.cuh"
#include "launch.h"

namespace transformer {

namespace {

constexpr int kDecodeThreads = kDecodeSplit;  // one for the weight of each key

// Grid: (batch * heads, splits). `lanes`, a power of two, read one key.
template <typename T>
__global__ void __launch_bounds__(kDecodeThreads)
    DecodeKernel(const __grid_constant__ DecodeArgs args, int lanes) {
  const AttentionShape& shape = args.shape;
  const int64_t pair = blockIdx.x;
  const int64_t part = blockIdx.y * shape.batch * shape.heads + pair;
  const int64_t first_key = static_cast<int64_t>(blockIdx.y) * kDecodeSplit;
  const int64_t end = min(static_cast<int64_t>(*args.position) + 1, shape.time);
  const int keys = static_cast<int>(
      min(end - first_key, static_cast<int64_t>(kDecodeSplit)));
  if (keys <= 0) {
    if (threadIdx.x == 0) args.partial_log_sum[part] = -kInfinity;
    return;
  }
  const int64_t stride = shape.heads * shape.dim;
  const int64_t first = pair / shape.heads * shape.time * stride +
                        pair % shape.heads * shape.dim + first_key * stride;
  const int lane = threadIdx.x % lanes;
  const int group = threadIdx.x / lanes, groups = kDecodeThreads / lanes;
  const int column = lane * kVector<T>;
  const int64_t valid = shape.dim - column;

  __shared__ float weights[kDecodeSplit];
  float q[kVector<T>];
  LoadFloats(q, static_cast<const T*>(args.q) + pair * shape.dim + column,
             valid, args.vectors);
  const T* k = static_cast<const T*>(args.k) + first + column;
  // Every lane goes round as often, since all of a warp take part in the sums.
#pragma unroll 4
  for (int start = 0; start < kDecodeSplit; start += groups) {
    const int key = start + group;
    float numbers[kVector<T>];
    LoadFloats(numbers, k + key * stride, key < keys ? valid : 0, args.vectors);
    float score = 0;
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) score += q[i] * numbers[i];
    for (int other = lanes / 2; other > 0; other /= 2) {
      score += __shfl_xor_sync(~0u, score, other);
    }
    if (lane == 0) {
      weights[key] = key < keys ? score * ScoreScale(shape) : -kInfinity;
    }
  }
  __syncthreads();
  const float score = weights[threadIdx.x];
  const float largest = BlockMax<kDecodeThreads>(score);
  const float weight = expf(score - largest);
  weights[threadIdx.x] = weight;
  const float total = BlockSum<kDecodeThreads>(weight);  // and a barrier
  if (threadIdx.x == 0) {
    args.partial_log_sum[part] = largest + logf(total);
  }

  float sums[kVector<T>] = {};
  const T* v = static_cast<const T*>(args.v) + first + column;
#pragma unroll 4
  for (int key = group; key < keys; key += groups) {
    float numbers[kVector<T>];
    LoadFloats(numbers, v + key * stride, valid, args.vectors);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) sums[i] += weights[key] * numbers[i];
  }
  // Each group has summed other keys.
  __shared__ float of_groups[kDecodeThreads * kVector<T>];
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) {
    of_groups[group * lanes * kVector<T> + column + i] = sums[i];
  }
  __syncthreads();
  const int i = threadIdx.x;
  if (i < shape.dim) {
    float sum = 0;
    for (int g = 0; g < groups; ++g) {
      sum += of_groups[g * lanes * kVector<T> + i];
    }
    args.partial_out[part * shape.dim + i] = sum / total;
  }
}

}  // namespace

static_assert(kMaxDim <= kDecodeThreads);
static_assert(kMaxDim <= kWarp * kVector<float>);

cudaError_t Decode(const DecodeArgs& args, cudaStream_t stream) {
  const AttentionShape& shape = args.shape;
  const int64_t splits = DecodeSplits(shape);
  const dim3 grid(static_cast<unsigned>(shape.batch * shape.heads),
                  static_cast<unsigned>(splits));
  const int64_t vector = 16 / static_cast<int64_t>(SizeOf(args.element));
  int lanes = 1;
  while (lanes * vector < shape.dim) lanes *= 2;
  const cudaError_t error =
      Launch(args.element == Element::kBf16 ? DecodeKernel<__nv_bfloat16>
                                            : DecodeKernel<float>,
             grid, kDecodeThreads, 0, stream, args, lanes);
  if (error != cudaSuccess) return error;
  // One row for each sequence and head.
  const AttentionShape rows = {shape.batch, 1, shape.heads, shape.dim};
  return Combine({rows, args.element, splits, kDecodeSplit, false,
                  args.partial_out, args.partial_log_sum, args.out, nullptr},
                 stream);
}

}  // namespace transformer
