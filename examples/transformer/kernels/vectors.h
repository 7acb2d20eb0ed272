// Vectors of the widest kind that this translation unit is compiled for, and
// what the tiles are made of: a matrix product and an exponential. For the
// tiles only: all of it is in the namespace of one instruction set.
#ifndef TRANSFORMER_VECTORS_H_
#define TRANSFORMER_VECTORS_H_

#include <stdint.h>
#include <string.h>

#include "tiles.h"

namespace transformer {
namespace TILES_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kTileRows = 8;  // with two vectors a row: 16 accumulators of 32
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kTileRows = 4;  // 8 accumulators of 16: as many as hide a
                              // multiply-add of 4 cycles, two in each
#else
constexpr int kLanes = 4;
constexpr int kTileRows = 4;
#endif
static_assert(kPadding % kLanes == 0);
static_assert(kBlock % kTileRows == 0);

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef float UnalignedFloats
    __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline Floats Load(const float* from) {
  return *reinterpret_cast<const UnalignedFloats*>(from);
}
inline void Store(Floats value, float* to) {
  *reinterpret_cast<UnalignedFloats*>(to) = value;
}
inline Floats Broadcast(float value) { return value - Floats{}; }
inline Floats Max(Floats a, Floats b) { return a > b ? a : b; }
inline float Sum(Floats a) {
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += a[i];
  return sum;
}
inline float Largest(Floats a) {
  float largest = a[0];
  for (int i = 1; i < kLanes; ++i) largest = a[i] > largest ? a[i] : largest;
  return largest;
}

// e^x within 2 units in the last place; 0 below -87, where it would not be a
// normal number, and e^88 above 88.
inline Floats Exp(Floats x) {
  // Adding 1.5 * 2^23 leaves the nearest whole number in the low bits.
  const Floats shifter = Broadcast(12582912.0f);
  const Floats clamped = x > 88.0f ? Broadcast(88.0f) : x;
  const Floats shifted = clamped * 1.44269504f + shifter;
  const Floats n = shifted - shifter;
  const Ints exponent = ((Ints)shifted - (Ints)shifter) << 23;
  // ln 2 in two parts, the first of few bits, so that n * 0.693359375 is exact.
  const Floats r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  // The Taylor series is exact enough on |r| <= ln(2) / 2.
  Floats p = r * (1.0f / 5040) + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Floats result = (Floats)((Ints)p + exponent);
  return x < -87.0f ? Broadcast(0.0f) : result;
}

// An operand whose element [i, j] is data[i * row + j * column].
struct Strided {
  const float* data;
  int64_t row, column;
};

// c [kRows, kVectors * kLanes] (+)= a [kRows, depth] @ b, in registers.
template <int kRows, int kVectors, bool kAdd>
inline void MultiplyTile(int64_t depth, Strided a, const float* b,
                         int64_t b_row, float* c, int64_t c_row) {
  Floats sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      sums[i][j] = kAdd ? Load(c + i * c_row + j * kLanes) : Floats{};
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    Floats row[kVectors];
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j)
      row[j] = Load(b + k * b_row + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const float factor = a.data[i * a.row + k * a.column];
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) sums[i][j] += factor * row[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      Store(sums[i][j], c + i * c_row + j * kLanes);
    }
  }
}

template <int kVectors, bool kAdd>
inline void MultiplyPanel(int64_t rows, int64_t depth, Strided a,
                          const float* b, int64_t b_row, float* c,
                          int64_t c_row) {
  int64_t i = 0;
  for (; i + kTileRows <= rows; i += kTileRows) {
    MultiplyTile<kTileRows, kVectors, kAdd>(depth, a, b, b_row, c, c_row);
    a.data += kTileRows * a.row;
    c += kTileRows * c_row;
  }
  for (; i < rows; ++i) {
    MultiplyTile<1, kVectors, kAdd>(depth, a, b, b_row, c, c_row);
    a.data += a.row;
    c += c_row;
  }
}

// c [rows, columns] (+)= a [rows, depth] @ b [depth, columns]; b and c with
// rows b_row and c_row apart. REQUIRES: columns is a multiple of kPadding.
template <bool kAdd>
inline void Multiply(int64_t rows, int64_t columns, int64_t depth, Strided a,
                     const float* b, int64_t b_row, float* c, int64_t c_row) {
  int64_t j = 0;
  for (; j + 2 * kLanes <= columns; j += 2 * kLanes) {
    MultiplyPanel<2, kAdd>(rows, depth, a, b + j, b_row, c + j, c_row);
  }
  for (; j < columns; j += kLanes) {
    MultiplyPanel<1, kAdd>(rows, depth, a, b + j, b_row, c + j, c_row);
  }
}

// Rows of `length` floats, `stride` apart, times `factor`, into rows of `width`
// with zeros after them, and zero rows after those up to kBlock.
inline void PackBlock(const float* from, int64_t stride, int64_t rows,
                      int64_t length, float factor, float* to, int64_t width) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < length; ++j) {
      to[i * width + j] = from[i * stride + j] * factor;
    }
    for (int64_t j = length; j < width; ++j) to[i * width + j] = 0;
  }
  memset(to + rows * width, 0, (kBlock - rows) * width * sizeof(float));
}

// The same, transposed: to [width, kBlock].
inline void PackTransposed(const float* from, int64_t stride, int64_t rows,
                           int64_t length, float* to, int64_t width) {
  if (rows < kBlock || length < width) {
    memset(to, 0, width * kBlock * sizeof(float));
  }
  for (int64_t j = 0; j < length; ++j) {
    for (int64_t i = 0; i < rows; ++i) {
      to[j * kBlock + i] = from[i * stride + j];
    }
  }
}

}  // namespace TILES_ISA
}  // namespace transformer

#endif  // TRANSFORMER_VECTORS_H_
