// Puts the parts together that the splits of attention leave in scratch. A warp
// takes a row, its lanes neighbouring columns.
#include "attention.h"
#include "attention_tiles.cuh"
#include "launch.h"

namespace transformer {

namespace {

constexpr int kRowsOfBlock = kThreads / kWarp;

// Element of row r of [batch, heads, time] in [batch, time, heads, dim].
__device__ int64_t Offset(const AttentionShape& shape, int64_t row) {
  const int64_t pair = row / shape.time, i = row % shape.time;
  return ((pair / shape.heads * shape.time + i) * shape.heads +
          pair % shape.heads) *
         shape.dim;
}

// Splits that begin before the end of the tile of position `i`.
__device__ int64_t SplitsUpTo(int64_t i, int64_t split_length, int64_t splits) {
  const int64_t end = (i / kTile + 1) * kTile;
  return min((end + split_length - 1) / split_length, splits);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    CombineKernel(const __grid_constant__ CombineArgs args) {
  const AttentionShape& shape = args.shape;
  const int64_t row = blockIdx.x * kRowsOfBlock + threadIdx.x / kWarp;
  if (row >= shape.rows()) return;
  const int lane = threadIdx.x % kWarp;
  const int64_t splits =
      args.causal ? SplitsUpTo(row % shape.time, args.split_length, args.splits)
                  : args.splits;
  float largest = -kInfinity;
  for (int64_t s = lane; s < splits; s += kWarp) {
    largest = fmaxf(largest, args.partial_log_sum[s * shape.rows() + row]);
  }
  largest = WarpMax(largest);
  float total = 0;
  for (int64_t s = lane; s < splits; s += kWarp) {
    total += expf(args.partial_log_sum[s * shape.rows() + row] - largest);
  }
  const float log_sum = largest + logf(WarpSum(total));
  if (lane == 0 && args.log_sum != nullptr) args.log_sum[row] = log_sum;

  T* const out = static_cast<T*>(args.out) + Offset(shape, row);
  for (int64_t column = lane; column < shape.dim; column += kWarp) {
    float sum = 0;
    for (int64_t s = 0; s < splits; ++s) {
      const int64_t part = s * shape.rows() + row;
      const float weight = expf(args.partial_log_sum[part] - log_sum);
      // A part of no weight may not have been written.
      if (weight > 0) {
        sum += weight * args.partial_out[part * shape.dim + column];
      }
    }
    out[column] = FromFloat<T>(sum);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    SumPartsKernel(const __grid_constant__ SumPartsArgs args) {
  const AttentionShape& shape = args.shape;
  const int64_t row = blockIdx.x * kRowsOfBlock + threadIdx.x / kWarp;
  if (row >= shape.rows()) return;
  const int64_t i = row % shape.time;
  const int64_t begin =
      args.of_keys ? i / kTile * kTile / args.split_length : 0;
  const int64_t end = args.of_keys
                          ? args.splits
                          : SplitsUpTo(i, args.split_length, args.splits);
  T* const out = static_cast<T*>(args.out) + Offset(shape, row);
  for (int64_t column = threadIdx.x % kWarp; column < shape.dim;
       column += kWarp) {
    float sum = 0;
    for (int64_t s = begin; s < end; ++s) {
      sum += args.partial[(s * shape.rows() + row) * shape.dim + column];
    }
    out[column] = FromFloat<T>(sum);
  }
}

dim3 RowGrid(const AttentionShape& shape) {
  return dim3(static_cast<unsigned>(CeilDiv(shape.rows(), kRowsOfBlock)));
}

}  // namespace

cudaError_t Combine(const CombineArgs& args, cudaStream_t stream) {
  return Launch(args.element == Element::kBf16 ? CombineKernel<__nv_bfloat16>
                                               : CombineKernel<float>,
                RowGrid(args.shape), kThreads, 0, stream, args);
}

cudaError_t SumParts(const SumPartsArgs& args, cudaStream_t stream) {
  return Launch(args.element == Element::kBf16 ? SumPartsKernel<__nv_bfloat16>
                                               : SumPartsKernel<float>,
                RowGrid(args.shape), kThreads, 0, stream, args);
}

}  // namespace transformer
