// What the kernels of both passes of attention share on the device.
#ifndef TRANSFORMER_CUDA_ATTENTION_TILES_CUH_
#define TRANSFORMER_CUDA_ATTENTION_TILES_CUH_

#include <cuda_bf16.h>

#include <cstdint>

#include "attention.h"
#include "warp_tiles.cuh"

namespace transformer {

inline constexpr int kThreads = kTile / kWarpRows * kWarp;
inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

// bf16 copies the next tile while it works on one; f32 tiles are twice as large
// and their products take far longer than copying them.
template <typename T>
inline constexpr int kStages = sizeof(T) == 2 ? 2 : 1;

// Which sequence and head a block works on, and where its rows are.
struct Place {
  int64_t pair;    // batch * heads + head
  int64_t first;   // element of row 0 in [batch, time, heads, dim]
  int64_t stride;  // elements from row to row

  __device__ explicit Place(const AttentionShape& shape) {
    pair = blockIdx.x;
    stride = shape.heads * shape.dim;
    first = pair / shape.heads * shape.time * stride +
            pair % shape.heads * shape.dim;
  }
};

__device__ inline float ScoreScale(const AttentionShape& shape) {
  return 1.0f / sqrtf(static_cast<float>(shape.dim));
}

// Goes through tiles 0 to `count` - 1: load(i, stage) starts to copy tile i, and
// work(i, stage) is called once it is there.
template <int kStageCount, typename Load, typename Work>
__device__ void ForEachTile(int64_t count, Load load, Work work) {
  load(0, 0);
  CommitCopies();
  for (int64_t i = 0; i < count; ++i) {
    const int stage = static_cast<int>(i % kStageCount);
    if (kStageCount > 1 && i + 1 < count) {
      load(i + 1, static_cast<int>((i + 1) % kStageCount));
      CommitCopies();
      WaitForCopies<1>();
    } else {
      WaitForCopies<0>();
    }
    __syncthreads();
    work(i, stage);
    __syncthreads();
    if (kStageCount == 1 && i + 1 < count) {
      load(i + 1, 0);
      CommitCopies();
    }
  }
}

// Stores a warp's 16 rows, from row `row` of the tile's first on, times
// `factors` of a lane's two rows. Rows begin `stride` apart, `rows` and `columns`
// are what exists.
template <typename U, int kN>
__device__ void StoreRows(const Accumulator<kN>& sums,
                          const float (&factors)[2], U* to, int64_t stride,
                          int64_t rows, int columns) {
  const bool pairs = columns % 2 == 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = Accumulator<kN>::Row(2 * half);
    if (row >= rows) continue;
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) {
      const int column = Accumulator<kN>::Column(j, 0);
      StorePair(to + row * stride + column,
                sums.values[j][2 * half] * factors[half],
                sums.values[j][2 * half + 1] * factors[half], columns - column,
                pairs);
    }
  }
}

// Calls f.template operator()<T, kDim>() for the element and the least padded
// dimension that a kernel exists for.
template <typename Function>
cudaError_t Dispatch(Element element, int64_t dim, const Function& f) {
  if (element == Element::kBf16) {
    if (dim <= 32) return f.template operator()<__nv_bfloat16, 32>();
    if (dim <= 64) return f.template operator()<__nv_bfloat16, 64>();
    return f.template operator()<__nv_bfloat16, 128>();
  }
  if (dim <= 32) return f.template operator()<float, 32>();
  if (dim <= 64) return f.template operator()<float, 64>();
  return f.template operator()<float, 128>();
}

}  // namespace transformer

#endif  // TRANSFORMER_CUDA_ATTENTION_TILES_CUH_
