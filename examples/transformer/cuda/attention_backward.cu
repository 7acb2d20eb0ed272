// The backward pass of attention. One kernel takes 64 keys to a block and goes
// through queries, for the gradients by keys and values; another takes 64 queries
// and goes through keys. Each computes the scores again from the logarithms of
// their sums. Nothing is added atomically, so the bits are the same every time.
#include "attention.h"
#include "attention_tiles.cuh"
#include "launch.h"

namespace transformer {

namespace {

// Rows of a tile that is gone through: what registers there are goes to the sums.
template <typename T, int kDim>
constexpr int kStepRows = kDim * sizeof(T) <= 128 ? 64 : 32;

// Two resident tiles and two that are gone through, and of the latter's rows
// two floats.
template <typename T, int kDim>
constexpr size_t SharedBytes() {
  return (2 * kTile + 2 * kStages<T> * kStepRows<T, kDim>)*kPitch<T, kDim> *
             sizeof(T) +
         2 * kStages<T> * kStepRows<T, kDim> * sizeof(float);
}

// The tiles of a block in shared memory.
template <typename T, int kDim>
struct Tiles {
  T* resident[2];
  T* step[2];  // of stage 0
  float* floats;

  __device__ explicit Tiles(unsigned char* shared) {
    constexpr int kStage = kStepRows<T, kDim> * kPitch<T, kDim>;
    resident[0] = reinterpret_cast<T*>(shared);
    resident[1] = resident[0] + kTile * kPitch<T, kDim>;
    step[0] = resident[1] + kTile * kPitch<T, kDim>;
    step[1] = step[0] + kStages<T> * kStage;
    floats = reinterpret_cast<float*>(step[1] + kStages<T> * kStage);
  }
  __device__ static int Stage(int stage) {
    return stage * kStepRows<T, kDim> * kPitch<T, kDim>;
  }
};

// Grid: (batch * heads, tiles of keys, splits of queries).
template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads)
    KeyValueKernel(const __grid_constant__ AttentionBackwardArgs args) {
  constexpr int kQueries = kStepRows<T, kDim>;
  const AttentionShape& shape = args.shape;
  const int64_t first_key = static_cast<int64_t>(blockIdx.y) * kTile;
  const int64_t split_start = blockIdx.z * args.split_length;
  // No query before the first key sees any of them.
  const int64_t first_query = max(split_start, first_key);
  const int64_t end_query = min(split_start + args.split_length, shape.time);
  if (first_query >= end_query) return;

  const Place place(shape);
  const int dim = static_cast<int>(shape.dim);
  extern __shared__ __align__(16) unsigned char shared[];
  const Tiles<T, kDim> tiles(shared);
  const int64_t key_offset = place.first + first_key * place.stride;
  const int64_t keys_left = shape.time - first_key;
  LoadTile<T, kTile, kDim, kThreads>(
      tiles.resident[0], static_cast<const T*>(args.k) + key_offset,
      place.stride, keys_left, dim, args.vectors);
  LoadTile<T, kTile, kDim, kThreads>(
      tiles.resident[1], static_cast<const T*>(args.v) + key_offset,
      place.stride, keys_left, dim, args.vectors);

  const auto load = [&](int64_t i, int stage) {
    const int64_t query = first_query + i * kQueries;
    const int64_t offset = place.first + query * place.stride;
    const int64_t left = shape.time - query;
    LoadTile<T, kQueries, kDim, kThreads>(
        tiles.step[0] + tiles.Stage(stage),
        static_cast<const T*>(args.q) + offset, place.stride, left, dim,
        args.vectors);
    LoadTile<T, kQueries, kDim, kThreads>(
        tiles.step[1] + tiles.Stage(stage),
        static_cast<const T*>(args.d_out) + offset, place.stride, left, dim,
        args.vectors);
    const int row = threadIdx.x;
    if (row < kQueries) {
      float* const to = tiles.floats + stage * 2 * kQueries + row;
      const int64_t from = place.pair * shape.time + query + row;
      // A query that does not exist gives every key the weight 0.
      to[0] = row < left ? args.log_sum[from] * kLog2E : kInfinity;
      to[kQueries] = row < left ? args.delta[from] : 0.0f;
    }
  };

  const int warp_row = threadIdx.x / kWarp * kWarpRows;
  const float scale = ScoreScale(shape);
  Accumulator<kDim> d_k, d_v;
  d_k.Clear();
  d_v.Clear();
  ForEachTile<kStages<T>>(
      CeilDiv(end_query - first_query, kQueries), load,
      [&](int64_t i, int stage) {
        const T* const queries = tiles.step[0] + tiles.Stage(stage);
        const T* const d_out = tiles.step[1] + tiles.Stage(stage);
        const float* const log_sum = tiles.floats + stage * 2 * kQueries;
        const float* const delta = log_sum + kQueries;
        const int start = warp_row * kPitch<T, kDim>;
        // Transposed: a row for each key, a column for each query.
        Accumulator<kQueries> weights;
        weights.Clear();
        MultiplyTransposed(weights, Rows<T, kDim>(tiles.resident[0] + start),
                           queries);
        const int64_t query = first_query + i * kQueries;
        const int behind = static_cast<int>(first_key - query) + warp_row;
#pragma unroll
        for (int j = 0; j < kQueries / 8; ++j) {
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const int column = Accumulator<kQueries>::Column(j, c);
            const bool visible =
                behind + Accumulator<kQueries>::Row(c) <= column;
            float& weight = weights.values[j][c];
            weight = visible
                         ? exp2f(weight * (scale * kLog2E) - log_sum[column])
                         : 0.0f;
          }
        }
        Multiply(d_v, weights, d_out);
        Accumulator<kQueries> d_scores;
        d_scores.Clear();
        MultiplyTransposed(d_scores, Rows<T, kDim>(tiles.resident[1] + start),
                           d_out);
#pragma unroll
        for (int j = 0; j < kQueries / 8; ++j) {
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const int column = Accumulator<kQueries>::Column(j, c);
            d_scores.values[j][c] =
                weights.values[j][c] * (d_scores.values[j][c] - delta[column]);
          }
        }
        Multiply(d_k, d_scores, queries);
      });

  const int64_t left = keys_left - warp_row;
  const float one[2] = {1, 1}, scales[2] = {scale, scale};
  if (args.splits == 1) {
    const int64_t to = key_offset + warp_row * place.stride;
    StoreRows(d_k, scales, static_cast<T*>(args.d_k) + to, place.stride, left,
              dim);
    StoreRows(d_v, one, static_cast<T*>(args.d_v) + to, place.stride, left,
              dim);
  } else {
    const int64_t to = (blockIdx.z * shape.rows() + place.pair * shape.time +
                        first_key + warp_row) *
                       shape.dim;
    StoreRows(d_k, scales, args.partial[0] + to, shape.dim, left, dim);
    StoreRows(d_v, one, args.partial[1] + to, shape.dim, left, dim);
  }
}

// Grid: (batch * heads, tiles of queries, splits of keys).
template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads)
    QueryKernel(const __grid_constant__ AttentionBackwardArgs args) {
  constexpr int kKeys = kStepRows<T, kDim>;
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
  const Tiles<T, kDim> tiles(shared);
  const int64_t query_offset = place.first + first_query * place.stride;
  const int64_t queries_left = shape.time - first_query;
  LoadTile<T, kTile, kDim, kThreads>(
      tiles.resident[0], static_cast<const T*>(args.q) + query_offset,
      place.stride, queries_left, dim, args.vectors);
  LoadTile<T, kTile, kDim, kThreads>(
      tiles.resident[1], static_cast<const T*>(args.d_out) + query_offset,
      place.stride, queries_left, dim, args.vectors);

  const auto load = [&](int64_t i, int stage) {
    const int64_t key = first_key + i * kKeys;
    const int64_t offset = place.first + key * place.stride;
    LoadTile<T, kKeys, kDim, kThreads>(tiles.step[0] + tiles.Stage(stage),
                                       static_cast<const T*>(args.k) + offset,
                                       place.stride, shape.time - key, dim,
                                       args.vectors);
    LoadTile<T, kKeys, kDim, kThreads>(tiles.step[1] + tiles.Stage(stage),
                                       static_cast<const T*>(args.v) + offset,
                                       place.stride, shape.time - key, dim,
                                       args.vectors);
  };

  const int warp_row = threadIdx.x / kWarp * kWarpRows;
  const int64_t left = queries_left - warp_row;
  const float scale = ScoreScale(shape);
  float log_sum[2], delta[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = Accumulator<kDim>::Row(2 * half);
    const int64_t from = place.pair * shape.time + first_query + warp_row + row;
    log_sum[half] = row < left ? args.log_sum[from] * kLog2E : kInfinity;
    delta[half] = row < left ? args.delta[from] : 0.0f;
  }
  Accumulator<kDim> d_q;
  d_q.Clear();
  ForEachTile<kStages<T>>(
      CeilDiv(end_key - first_key, kKeys), load, [&](int64_t i, int stage) {
        const T* const keys = tiles.step[0] + tiles.Stage(stage);
        const T* const values = tiles.step[1] + tiles.Stage(stage);
        const int start = warp_row * kPitch<T, kDim>;
        Accumulator<kKeys> scores, d_scores;
        scores.Clear();
        d_scores.Clear();
        MultiplyTransposed(scores, Rows<T, kDim>(tiles.resident[0] + start),
                           keys);
        MultiplyTransposed(d_scores, Rows<T, kDim>(tiles.resident[1] + start),
                           values);
        const int64_t key = first_key + i * kKeys;
        const int ahead = static_cast<int>(first_query - key) + warp_row;
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const bool visible = Accumulator<kKeys>::Column(j, c) <=
                                 ahead + Accumulator<kKeys>::Row(c);
            const float weight =
                exp2f(scores.values[j][c] * (scale * kLog2E) - log_sum[c / 2]);
            scores.values[j][c] =
                visible ? weight * (d_scores.values[j][c] - delta[c / 2])
                        : 0.0f;
          }
        }
        Multiply(d_q, scores, keys);
      });

  const float scales[2] = {scale, scale};
  if (args.splits == 1) {
    StoreRows(
        d_q, scales,
        static_cast<T*>(args.d_q) + query_offset + warp_row * place.stride,
        place.stride, left, dim);
  } else {
    StoreRows(
        d_q, scales,
        args.partial[0] + (blockIdx.z * shape.rows() + place.pair * shape.time +
                           first_query + warp_row) *
                              shape.dim,
        shape.dim, left, dim);
  }
}

// A warp for each row: the sum of out * d_out.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    DeltaKernel(const __grid_constant__ AttentionBackwardArgs args) {
  const AttentionShape& shape = args.shape;
  const int64_t row = blockIdx.x * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= shape.rows()) return;
  const int64_t pair = row / shape.time, i = row % shape.time;
  const int64_t offset = ((pair / shape.heads * shape.time + i) * shape.heads +
                          pair % shape.heads) *
                         shape.dim;
  float sum = 0;
  for (int64_t column = threadIdx.x % kWarp * kVector<T>; column < shape.dim;
       column += kWarp * kVector<T>) {
    float out[kVector<T>], d_out[kVector<T>];
    const int64_t valid = shape.dim - column;
    LoadFloats(out, static_cast<const T*>(args.out) + offset + column, valid,
               args.vectors);
    LoadFloats(d_out, static_cast<const T*>(args.d_out) + offset + column,
               valid, args.vectors);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) sum += out[j] * d_out[j];
  }
  sum = WarpSum(sum);
  if (threadIdx.x % kWarp == 0) args.delta[row] = sum;
}

}  // namespace

cudaError_t AttentionBackward(const AttentionBackwardArgs& args,
                              cudaStream_t stream) {
  const AttentionShape& shape = args.shape;
  const dim3 grid(static_cast<unsigned>(shape.batch * shape.heads),
                  static_cast<unsigned>(shape.tiles()),
                  static_cast<unsigned>(args.splits));
  const dim3 row_grid(
      static_cast<unsigned>(CeilDiv(shape.rows(), kThreads / kWarp)));
  cudaError_t error =
      Dispatch(args.element, shape.dim, [&]<typename T, int kDim>() {
        const cudaError_t error =
            Launch(DeltaKernel<T>, row_grid, kThreads, 0, stream, args);
        if (error != cudaSuccess) return error;
        return Launch(KeyValueKernel<T, kDim>, grid, kThreads,
                      SharedBytes<T, kDim>(), stream, args);
      });
  const auto sum = [&](bool of_keys, const float* partial, void* out) {
    if (error != cudaSuccess || args.splits == 1) return;
    error = SumParts({shape, args.element, args.splits, args.split_length,
                      of_keys, partial, out},
                     stream);
  };
  sum(true, args.partial[0], args.d_k);
  sum(true, args.partial[1], args.d_v);
  if (error != cudaSuccess) return error;
  error = Dispatch(args.element, shape.dim, [&]<typename T, int kDim>() {
    return Launch(QueryKernel<T, kDim>, grid, kThreads, SharedBytes<T, kDim>(),
                  stream, args);
  });
  sum(false, args.partial[0], args.d_q);
  return error;
}

}  // namespace transformer
