// Quantising to 8 bits and back, see quantise.h.
#include <cuda_bf16.h>

#include "launch.h"
#include "numbers.cuh"
#include "quantise.h"

namespace transformer {

namespace {

constexpr int kThreads = 256;
constexpr int kTileSize = 64;  // of w, transposed by way of shared memory

__device__ float Inverse(float largest) {
  return largest > 0 ? 127 / largest : 0;
}

__device__ int8_t ToInt8(float x, float inverse) {
  return static_cast<int8_t>(__float2int_rn(x * inverse));
}

// A block of threads for each padded row of x.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    QuantiseRowsKernel(const __grid_constant__ QuantisedArgs args,
                       int64_t padded_depth, bool vectors) {
  constexpr int kStep = kVector<T>;
  const int64_t row = blockIdx.x;
  const T* const x = static_cast<const T*>(args.x) + row * args.depth;
  const int64_t depth = row < args.rows ? args.depth : 0;
  float numbers[kStep];
  float largest = 0;
  for (int64_t i = threadIdx.x * kStep; i < depth; i += kThreads * kStep) {
    LoadFloats(numbers, x + i, depth - i, vectors);
#pragma unroll
    for (float number : numbers) largest = fmaxf(largest, fabsf(number));
  }
  largest = BlockMax<kThreads>(largest);
  if (threadIdx.x == 0 && row < args.rows) args.x_largest[row] = largest;
  const float inverse = Inverse(largest);
  int8_t* const to = args.x_whole + row * padded_depth;
  for (int64_t i = threadIdx.x * kStep; i < padded_depth;
       i += kThreads * kStep) {
    LoadFloats(numbers, x + i, depth - i, vectors);
    union {
      int8_t whole[kStep];
      uint32_t words[kStep / 4];
    };
#pragma unroll
    for (int j = 0; j < kStep; ++j) whole[j] = ToInt8(numbers[j], inverse);
#pragma unroll
    for (int j = 0; j < kStep / 4; ++j) {
      reinterpret_cast<uint32_t*>(to + i)[j] = words[j];
    }
  }
}

// Where a thread's kVector<T> numbers of a tile of w are: rows of the tile by
// turns, so that neighbouring threads read neighbouring columns.
template <typename T>
struct TilePlace {
  static constexpr int kThreadsOfRow = kTileSize / kVector<T>;
  static constexpr int kRowsAtOnce = kThreads / kThreadsOfRow;
  int row = threadIdx.x / kThreadsOfRow;
  int column = threadIdx.x % kThreadsOfRow * kVector<T>;
};

// Grid: (tiles of columns, pieces of the depth). Magnitudes are not negative, so
// they are ordered as whole numbers are, for atomicMax.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    ColumnLargestKernel(const __grid_constant__ QuantisedArgs args,
                        bool vectors) {
  const TilePlace<T> place;
  const int64_t column = blockIdx.x * int64_t{kTileSize} + place.column;
  const int64_t valid = args.columns - column;
  const T* const w = static_cast<const T*>(args.w) + column;
  float largest[kVector<T>] = {};
#pragma unroll 4
  for (int64_t row = blockIdx.y * int64_t{place.kRowsAtOnce} + place.row;
       row < args.depth; row += gridDim.y * int64_t{place.kRowsAtOnce}) {
    float numbers[kVector<T>];
    LoadFloats(numbers, w + row * args.columns, valid, vectors);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      largest[j] = fmaxf(largest[j], fabsf(numbers[j]));
    }
  }
  __shared__ int of_block[kTileSize];
  if (threadIdx.x < kTileSize) of_block[threadIdx.x] = 0;
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kVector<T>; ++j) {
    atomicMax(&of_block[place.column + j], __float_as_int(largest[j]));
  }
  __syncthreads();
  const int64_t mine = blockIdx.x * int64_t{kTileSize} + threadIdx.x;
  if (threadIdx.x < kTileSize && mine < args.columns) {
    atomicMax(reinterpret_cast<int*>(args.w_largest) + mine,
              of_block[threadIdx.x]);
  }
}

// Grid: (tiles of columns, tiles of the depth), both padded.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    QuantiseColumnsKernel(const __grid_constant__ QuantisedArgs args,
                          int64_t padded_depth, int64_t padded_columns,
                          bool vectors) {
  __shared__ int8_t tile[kTileSize][kTileSize + 4];  // [column][row]
  const TilePlace<T> place;
  const int64_t first_row = blockIdx.y * int64_t{kTileSize};
  const int64_t first_column = blockIdx.x * int64_t{kTileSize};
  const int64_t column = first_column + place.column;
  float inverse[kVector<T>];
#pragma unroll
  for (int j = 0; j < kVector<T>; ++j) {
    inverse[j] =
        column + j < args.columns ? Inverse(args.w_largest[column + j]) : 0;
  }
  const T* const w = static_cast<const T*>(args.w) + column;
#pragma unroll
  for (int i = 0; i < kTileSize; i += place.kRowsAtOnce) {
    const int64_t row = first_row + i + place.row;
    float numbers[kVector<T>];
    LoadFloats(numbers, w + row * args.columns,
               row < args.depth ? args.columns - column : 0, vectors);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      tile[place.column + j][i + place.row] = ToInt8(numbers[j], inverse[j]);
    }
  }
  __syncthreads();
  constexpr int kWords = kTileSize / 4;  // of a column in the tile
#pragma unroll
  for (int i = threadIdx.x; i < kTileSize * kWords; i += kThreads) {
    const int64_t to_column = first_column + i / kWords;
    const int64_t to_row = first_row + i % kWords * 4;
    if (to_column < padded_columns && to_row < padded_depth) {
      *reinterpret_cast<uint32_t*>(args.w_whole + to_column * padded_depth +
                                   to_row) =
          *reinterpret_cast<const uint32_t*>(&tile[i / kWords][i % kWords * 4]);
    }
  }
}

// Grid: (rows, pieces of a row).
__global__ void __launch_bounds__(kThreads)
    DequantiseKernel(const __grid_constant__ QuantisedArgs args,
                     int64_t padded_columns) {
  const int64_t row = blockIdx.x;
  const int64_t column = blockIdx.y * int64_t{kThreads} + threadIdx.x;
  if (column >= args.columns) return;
  const float scale =
      (args.x_largest[row] / 127) * (args.w_largest[column] / 127);
  args.y[row * args.columns + column] =
      static_cast<float>(args.product[row * padded_columns + column]) * scale;
}

template <typename T>
cudaError_t QuantiseAs(const QuantisedArgs& args, cudaStream_t stream) {
  const int64_t padded_depth = args.Padded(args.depth);
  const int64_t padded_columns = args.Padded(args.columns);
  const auto aligned = [](const void* data, int64_t size) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 &&
           size % kVector<T> == 0;
  };
  const bool w_vectors = aligned(args.w, args.columns);
  cudaError_t error =
      Launch(QuantiseRowsKernel<T>,
             dim3(static_cast<unsigned>(args.Padded(args.rows))), kThreads, 0,
             stream, args, padded_depth, aligned(args.x, args.depth));
  if (error != cudaSuccess) return error;
  error =
      cudaMemsetAsync(args.w_largest, 0, args.columns * sizeof(float), stream);
  if (error != cudaSuccess) return error;
  const unsigned tiles =
      static_cast<unsigned>(CeilDiv(padded_columns, kTileSize));
  constexpr unsigned kPieces = 8;
  error = Launch(ColumnLargestKernel<T>, dim3(tiles, kPieces), kThreads, 0,
                 stream, args, w_vectors);
  if (error != cudaSuccess) return error;
  const dim3 grid(tiles,
                  static_cast<unsigned>(CeilDiv(padded_depth, kTileSize)));
  return Launch(QuantiseColumnsKernel<T>, grid, kThreads, 0, stream, args,
                padded_depth, padded_columns, w_vectors);
}

}  // namespace

cudaError_t Quantise(const QuantisedArgs& args, cudaStream_t stream) {
  return args.element == Element::kBf16
             ? QuantiseAs<__nv_bfloat16>(args, stream)
             : QuantiseAs<float>(args, stream);
}

cudaError_t Dequantise(const QuantisedArgs& args, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(args.rows),
                  static_cast<unsigned>(CeilDiv(args.columns, kThreads)));
  return Launch(DequantiseKernel, grid, kThreads, 0, stream, args,
                args.Padded(args.columns));
}

}  // namespace transformer
