// The forward pass of attention: a block of threads takes 64 queries and the keys
// of one split, 64 at a time, and never holds more than a tile of scores.
#include "attention.h"
#include "attention_tiles.cuh"
#include "launch.h"

namespace transformer {

namespace {

constexpr int kKeys = 64;  // of a tile

template <typename T, int kDim>
constexpr size_t SharedBytes() {
  return (kTile + 2 * kStages<T> * kKeys) * kPitch<T, kDim> * sizeof(T);
}

// The running maximum (of scores in powers of two) and sum of a lane's two rows.
struct RowSums {
  float largest[2] = {-kInfinity, -kInfinity};
  float sum[2] = {0, 0};  // of this lane's columns
};

// Turns scores into weights relative to the running maximum, to which what was
// summed before is brought too.
template <int kDim>
__device__ void Softmax(Accumulator<kKeys>& scores, Accumulator<kDim>& sums,
                        RowSums& rows) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float largest = rows.largest[half];
#pragma unroll
    for (auto& block : scores.values) {
      largest = fmaxf(largest, fmaxf(block[2 * half], block[2 * half + 1]));
    }
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
    const float factor = exp2f(rows.largest[half] - largest);
    rows.largest[half] = largest;
    rows.sum[half] *= factor;
#pragma unroll
    for (auto& block : sums.values) {
      block[2 * half] *= factor;
      block[2 * half + 1] *= factor;
    }
#pragma unroll
    for (auto& block : scores.values) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        block[i] = exp2f(block[i] - largest);
        rows.sum[half] += block[i];
      }
    }
  }
}

// Grid: (batch * heads, tiles of queries, splits). The last tiles, which have the
// most keys, come first.
template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads)
    ForwardKernel(const __grid_constant__ AttentionForwardArgs args) {
  const AttentionShape& shape = args.shape;
  const int64_t tile = gridDim.y - 1 - blockIdx.y;
  const int64_t first_query = tile * kTile;
  const int64_t first_key = blockIdx.z * args.split_length;
  const int64_t end_key =
      min(min(first_key + args.split_length, shape.time), first_query + kTile);
  if (first_key >= end_key) return;

  const Place place(shape);
  const int dim = static_cast<int>(shape.dim);
  extern __shared__ __align__(16) unsigned char shared[];
  T* const q = reinterpret_cast<T*>(shared);
  T* const keys = q + kTile * kPitch<T, kDim>;
  T* const values = keys + kStages<T> * kKeys * kPitch<T, kDim>;

  const auto load = [&](int64_t i, int stage) {
    const int64_t key = first_key + i * kKeys;
    const int64_t offset = place.first + key * place.stride;
    const int to = stage * kKeys * kPitch<T, kDim>;
    LoadTile<T, kKeys, kDim, kThreads>(
        keys + to, static_cast<const T*>(args.k) + offset, place.stride,
        shape.time - key, dim, args.vectors);
    LoadTile<T, kKeys, kDim, kThreads>(
        values + to, static_cast<const T*>(args.v) + offset, place.stride,
        shape.time - key, dim, args.vectors);
  };
  // In one group of copies with the first tile of keys.
  LoadTile<T, kTile, kDim, kThreads>(
      q,
      static_cast<const T*>(args.q) + place.first + first_query * place.stride,
      place.stride, shape.time - first_query, dim, args.vectors);

  const int warp_row = threadIdx.x / kWarp * kWarpRows;
  const float scale = ScoreScale(shape) * kLog2E;
  Accumulator<kDim> sums;
  sums.Clear();
  RowSums rows;
  ForEachTile<kStages<T>>(
      CeilDiv(end_key - first_key, kKeys), load, [&](int64_t i, int stage) {
        const int tile_start = stage * kKeys * kPitch<T, kDim>;
        Accumulator<kKeys> scores;
        scores.Clear();
        MultiplyTransposed(scores,
                           Rows<T, kDim>(q + warp_row * kPitch<T, kDim>),
                           keys + tile_start);
        // Of these keys, a query sees those up to its own position.
        const int64_t key = first_key + i * kKeys;
        const int ahead = static_cast<int>(first_query - key) + warp_row;
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const bool visible = Accumulator<kKeys>::Column(j, c) <=
                                 ahead + Accumulator<kKeys>::Row(c);
            scores.values[j][c] =
                visible ? scores.values[j][c] * scale : -kInfinity;
          }
        }
        Softmax(scores, sums, rows);
        Multiply(sums, scores, values + tile_start);
      });

  float inverse[2];
  const int64_t first_row = first_query + warp_row;
  const int64_t left = shape.time - first_row;
  float* const log_sum =
      (args.splits == 1 ? args.log_sum
                        : args.partial_log_sum + blockIdx.z * shape.rows()) +
      place.pair * shape.time + first_row;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = rows.sum[half];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    inverse[half] = 1 / sum;
    const int row = Accumulator<kDim>::Row(2 * half);
    if (threadIdx.x % 4 == 0 && row < left) {
      log_sum[row] = (rows.largest[half] + log2f(sum)) * kLn2;
    }
  }
  if (args.splits == 1) {
    StoreRows(
        sums, inverse,
        static_cast<T*>(args.out) + place.first + first_row * place.stride,
        place.stride, left, dim);
  } else {
    StoreRows(sums, inverse,
              args.partial_out + (blockIdx.z * shape.rows() +
                                  place.pair * shape.time + first_row) *
                                     shape.dim,
              shape.dim, left, dim);
  }
}

}  // namespace

cudaError_t AttentionForward(const AttentionForwardArgs& args,
                             cudaStream_t stream) {
  const AttentionShape& shape = args.shape;
  const dim3 grid(static_cast<unsigned>(shape.batch * shape.heads),
                  static_cast<unsigned>(shape.tiles()),
                  static_cast<unsigned>(args.splits));
  const cudaError_t error =
      Dispatch(args.element, shape.dim, [&]<typename T, int kDim>() {
        return Launch(ForwardKernel<T, kDim>, grid, kThreads,
                      SharedBytes<T, kDim>(), stream, args);
      });
  if (error != cudaSuccess || args.splits == 1) return error;
  return Combine(
      {shape, args.element, args.splits, args.split_length, true,
       args.partial_out, args.partial_log_sum, args.out, args.log_sum},
      stream);
}

}  // namespace transformer
