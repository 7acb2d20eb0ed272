// Products of tiles in shared memory, a block of 16 rows for each warp.
//
// Written once for both kinds of numbers: bf16 goes to the tensor cores, f32 is
// multiplied by the ordinary units. Either way a warp holds its 16 x N results
// as the tensor cores lay them out (see Accumulator), so the kernels above need
// not know which it was. In the f32 version many lanes of a warp read the same
// word of shared memory, which costs one access.
#ifndef TRANSFORMER_CUDA_WARP_TILES_CUH_
#define TRANSFORMER_CUDA_WARP_TILES_CUH_

#include "numbers.cuh"
#include "ptx.cuh"

namespace transformer {

inline constexpr int kWarp = 32;
inline constexpr int kWarpRows = 16;

// Numbers from one row of a tile in shared memory to the next: 16 bytes more
// than the row has, so that equal columns of 8 rows are in different banks.
template <typename T, int kColumns>
inline constexpr int kPitch = kColumns + kVector<T>;

// 16 x kN numbers of a warp. Lane l has of every 8 columns j the four
// [j][0..3] = (row, column), (row, column + 1), (row + 8, column),
// (row + 8, column + 1), with row = l / 4 and column = 8 * j + 2 * (l % 4).
template <int kN>
struct Accumulator {
  float values[kN / 8][4];

  __device__ void Clear() {
#pragma unroll
    for (auto& block : values) {
#pragma unroll
      for (float& value : block) value = 0;
    }
  }
  // Row and column of values[j][i] of this lane.
  __device__ static int Row(int i) {
    return static_cast<int>(threadIdx.x % kWarp / 4) + (i / 2) * 8;
  }
  __device__ static int Column(int j, int i) {
    return 8 * j + 2 * static_cast<int>(threadIdx.x % 4) + i % 2;
  }
};

// The left side of a product: 16 rows of kK numbers.
template <typename T, int kK>
struct Rows;

template <int kK>
struct Rows<__nv_bfloat16, kK> {
  uint32_t registers[kK / 16][4];

  __device__ explicit Rows(const __nv_bfloat16* tile) {
    const int lane = threadIdx.x % kWarp;
    tile += lane % 16 * kPitch<__nv_bfloat16, kK> + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < kK / 16; ++k) LoadMatrices(registers[k], tile + 16 * k);
  }
};

template <int kK>
struct Rows<float, kK> {
  const float* tile;  // too many numbers for registers

  __device__ explicit Rows(const float* tile) : tile(tile) {}
};

// sums (16 x kN) += rows (16 x kK) b^T, with b a tile of kN rows of kK numbers.
template <int kN, int kK>
__device__ void MultiplyTransposed(Accumulator<kN>& sums,
                                   const Rows<__nv_bfloat16, kK>& rows,
                                   const __nv_bfloat16* b) {
  constexpr int kStep = kPitch<__nv_bfloat16, kK>;
  const int lane = threadIdx.x % kWarp;
  b += (lane % 8 + lane / 16 * 8) * kStep + lane / 8 % 2 * 8;
#pragma unroll
  for (int k = 0; k < kK / 16; ++k) {
#pragma unroll
    for (int n = 0; n < kN / 16; ++n) {
      uint32_t loaded[4];
      LoadMatrices(loaded, b + 16 * n * kStep + 16 * k);
      MultiplyMatrices(sums.values[2 * n], rows.registers[k], loaded[0],
                       loaded[1]);
      MultiplyMatrices(sums.values[2 * n + 1], rows.registers[k], loaded[2],
                       loaded[3]);
    }
  }
}

template <int kN, int kK>
__device__ void MultiplyTransposed(Accumulator<kN>& sums,
                                   const Rows<float, kK>& rows,
                                   const float* b) {
  constexpr int kStep = kPitch<float, kK>;
  const int lane = threadIdx.x % kWarp;
  const float* upper = rows.tile + lane / 4 * kStep;
  const float* lower = upper + 8 * kStep;
  b += 2 * (lane % 4) * kStep;
#pragma unroll 1
  for (int k = 0; k < kK; k += 4) {
    const float4 x = *reinterpret_cast<const float4*>(upper + k);
    const float4 y = *reinterpret_cast<const float4*>(lower + k);
#pragma unroll
    for (int n = 0; n < kN / 8; ++n) {
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        const float4 z =
            *reinterpret_cast<const float4*>(b + (8 * n + column) * kStep + k);
        float& above = sums.values[n][column];
        float& below = sums.values[n][2 + column];
        above += x.x * z.x;
        above += x.y * z.y;
        above += x.z * z.z;
        above += x.w * z.w;
        below += y.x * z.x;
        below += y.y * z.y;
        below += y.z * z.z;
        below += y.w * z.w;
      }
    }
  }
}

// sums (16 x kN) += left (16 x kK) b, with b a tile of kK rows of kN numbers.
template <int kN, int kK>
__device__ void Multiply(Accumulator<kN>& sums, const Accumulator<kK>& left,
                         const __nv_bfloat16* b) {
  constexpr int kStep = kPitch<__nv_bfloat16, kN>;
  const int lane = threadIdx.x % kWarp;
  b += lane % 16 * kStep + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < kK / 16; ++k) {
    // What a lane holds of the results is what it has to hold of a left side.
    const float (&first)[4] = left.values[2 * k];
    const float (&second)[4] = left.values[2 * k + 1];
    const uint32_t packed[4] = {
        PackBf16(first[0], first[1]), PackBf16(first[2], first[3]),
        PackBf16(second[0], second[1]), PackBf16(second[2], second[3])};
#pragma unroll
    for (int n = 0; n < kN / 16; ++n) {
      uint32_t loaded[4];
      LoadMatricesTransposed(loaded, b + 16 * k * kStep + 16 * n);
      MultiplyMatrices(sums.values[2 * n], packed, loaded[0], loaded[1]);
      MultiplyMatrices(sums.values[2 * n + 1], packed, loaded[2], loaded[3]);
    }
  }
}

template <int kN, int kK>
__device__ void Multiply(Accumulator<kN>& sums, const Accumulator<kK>& left,
                         const float* b) {
  constexpr int kStep = kPitch<float, kN>;
  const int lane = threadIdx.x % kWarp;
  b += 2 * (lane % 4);
#pragma unroll
  for (int block = 0; block < kK / 8; ++block) {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      // The four lanes of a row hold its numbers by turns.
      const float (&mine)[4] = left.values[block];
      const int holder = lane / 4 * 4 + k / 2;
      const float above = __shfl_sync(~0u, mine[k % 2], holder);
      const float below = __shfl_sync(~0u, mine[2 + k % 2], holder);
      const float* row = b + (8 * block + k) * kStep;
#pragma unroll
      for (int n = 0; n < kN / 8; ++n) {
        const float2 z = *reinterpret_cast<const float2*>(row + 8 * n);
        sums.values[n][0] += above * z.x;
        sums.values[n][1] += above * z.y;
        sums.values[n][2] += below * z.x;
        sums.values[n][3] += below * z.y;
      }
    }
  }
}

// Starts to copy a tile of kRows x kColumns into shared memory, of a matrix whose
// rows begin `stride` numbers apart. What lies beyond `rows` and `columns`
// becomes zero. Without `vectors` (rows not aligned to 16 bytes) it is copied by
// the number. Needs CommitCopies(), WaitForCopies() and a barrier.
template <typename T, int kRows, int kColumns, int kThreads>
__device__ void LoadTile(T* tile, const T* from, int64_t stride, int64_t rows,
                         int columns, bool vectors) {
  constexpr int kStep = kPitch<T, kColumns>;
  if (vectors) {
    constexpr int kVectors = kColumns / kVector<T>;
#pragma unroll 4
    for (int i = threadIdx.x; i < kRows * kVectors; i += kThreads) {
      const int row = i / kVectors, column = i % kVectors * kVector<T>;
      const bool valid = row < rows && column < columns;
      CopyAsync(tile + row * kStep + column,
                valid ? from + row * stride + column : from, valid);
    }
  } else {
    for (int i = threadIdx.x; i < kRows * kColumns; i += kThreads) {
      const int row = i / kColumns, column = i % kColumns;
      tile[row * kStep + column] = row < rows && column < columns
                                       ? from[row * stride + column]
                                       : FromFloat<T>(0.0f);
    }
  }
}

}  // namespace transformer

#endif  // TRANSFORMER_CUDA_WARP_TILES_CUH_
