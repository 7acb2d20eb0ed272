// Matrix product of whole numbers of 8 bits, with operands quantised on the
// fly.
#include <math.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "vectors.h"

namespace transformer {
namespace TILES_ISA {

namespace {

// The factor that maps [-largest, largest] to [-127, 127], and its inverse. Not
// a number where an input is none or infinite, so that the result is none
// either; 0 where 127 / largest is too large for a float.
struct Scale {
  explicit Scale(float largest) {
    if (!(largest < INFINITY)) {
      scale = NAN;
    } else if (largest > 1e-35f) {
      scale = largest / 127;
      inverse = 127 / largest;
    }
  }
  float scale = 0;
  float inverse = 0;
};

// Adding 1.5 * 2^23 leaves the nearest whole number in the low bits.
inline int32_t Round(float value) {
  const float shifter = 12582912.0f;
  const float shifted = value + shifter;
  int32_t bits, zero;
  memcpy(&bits, &shifted, sizeof(bits));
  memcpy(&zero, &shifter, sizeof(zero));
  return bits - zero;
}

// A maximum that keeps what is not a number.
inline float MaxMagnitude(float largest, float value) {
  const float magnitude = fabsf(value);
  return magnitude <= largest ? largest : magnitude;
}

// Products of kRows rows of x with one panel of w.
template <int kRows>
inline void Dot(const uint8_t* x, int64_t depth, const int8_t* w,
                int32_t (*out)[kPadding]) {
#if defined(__AVX512VNNI__)
  __m512i sums[kRows];
  for (int i = 0; i < kRows; ++i) sums[i] = _mm512_setzero_si512();
  for (int64_t k = 0; k < depth; k += 4) {
    const __m512i columns = _mm512_loadu_si512(w + k * kPadding);
    for (int i = 0; i < kRows; ++i) {
      int32_t four;
      memcpy(&four, x + i * depth + k, sizeof(four));
      sums[i] = _mm512_dpbusd_epi32(sums[i], _mm512_set1_epi32(four), columns);
    }
  }
  for (int i = 0; i < kRows; ++i) _mm512_storeu_si512(out[i], sums[i]);
#elif defined(__AVX2__)
  // Widened to 16 bits, since the product of bytes would saturate: two sums of
  // 32 bits a column, which are added at the end.
  for (int part = 0; part < kPadding; part += 4) {
    __m256i sums[kRows];
    for (int i = 0; i < kRows; ++i) sums[i] = _mm256_setzero_si256();
    for (int64_t k = 0; k < depth; k += 4) {
      const __m256i columns = _mm256_cvtepi8_epi16(_mm_loadu_si128(
          reinterpret_cast<const __m128i*>(w + k * kPadding + part * 4)));
      for (int i = 0; i < kRows; ++i) {
        int32_t four;
        memcpy(&four, x + i * depth + k, sizeof(four));
        const __m256i row = _mm256_cvtepu8_epi16(_mm_set1_epi32(four));
        sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(row, columns));
      }
    }
    for (int i = 0; i < kRows; ++i) {
      int32_t pairs[8];
      memcpy(pairs, &sums[i], sizeof(pairs));
      for (int j = 0; j < 4; ++j) {
        out[i][part + j] = pairs[2 * j] + pairs[2 * j + 1];
      }
    }
  }
#else
  for (int i = 0; i < kRows; ++i) {
    int32_t sums[kPadding] = {};
    for (int64_t k = 0; k < depth; k += 4) {
      const int8_t* columns = w + k * kPadding;
      for (int j = 0; j < kPadding; ++j) {
        for (int step = 0; step < 4; ++step) {
          sums[j] += x[i * depth + k + step] * columns[4 * j + step];
        }
      }
    }
    memcpy(out[i], sums, sizeof(sums));
  }
#endif
}

template <int kRows>
inline void MultiplyRows(const Int8Args& args, int64_t row, int64_t panel) {
  const int64_t depth = args.padded_depth(), column = panel * kPadding;
  int32_t products[kRows][kPadding];
  Dot<kRows>(args.x_packed + row * depth, depth,
             args.w_packed + panel * depth * kPadding, products);
  const int64_t left = args.columns - column;
  const int64_t columns = left < kPadding ? left : kPadding;
  for (int i = 0; i < kRows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      // Takes off what the 128 that was added to x contributed.
      const int32_t product = products[i][j] - 128 * args.w_sum[column + j];
      args.y[(row + i) * args.columns + column + j] =
          product * (args.x_scale[row + i] * args.w_scale[column + j]);
    }
  }
}

}  // namespace

void QuantiseRows(const Int8Args& args, int64_t tile) {
  const int64_t depth = args.padded_depth();
  for (int64_t i = tile * kBlock; i < args.rows && i < (tile + 1) * kBlock;
       ++i) {
    const float* from = args.x + i * args.depth;
    uint8_t* to = args.x_packed + i * depth;
    float largest = 0;
    for (int64_t k = 0; k < args.depth; ++k) {
      largest = MaxMagnitude(largest, from[k]);
    }
    const Scale scale(largest);
    args.x_scale[i] = scale.scale;
    for (int64_t k = 0; k < args.depth; ++k) {
      to[k] = static_cast<uint8_t>(128 + Round(from[k] * scale.inverse));
    }
    for (int64_t k = args.depth; k < depth; ++k) to[k] = 128;
  }
}

void QuantiseColumns(const Int8Args& args, int64_t tile) {
  const int64_t column = tile * kPadding;
  const int64_t left = args.columns - column;
  const int64_t columns = left < kPadding ? left : kPadding;
  float largest[kPadding] = {};
  for (int64_t k = 0; k < args.depth; ++k) {
    const float* row = args.w + k * args.columns + column;
    for (int64_t j = 0; j < columns; ++j) {
      largest[j] = MaxMagnitude(largest[j], row[j]);
    }
  }
  float inverse[kPadding];
  int32_t sums[kPadding] = {};
  for (int64_t j = 0; j < kPadding; ++j) {
    const Scale scale(largest[j]);
    args.w_scale[column + j] = scale.scale;
    inverse[j] = scale.inverse;
  }
  int8_t* to = args.w_packed + tile * args.padded_depth() * kPadding;
  memset(to, 0, args.padded_depth() * kPadding);
  for (int64_t k = 0; k < args.depth; ++k) {
    const float* row = args.w + k * args.columns + column;
    int8_t* four = to + k / 4 * 4 * kPadding + k % 4;
    for (int64_t j = 0; j < columns; ++j) {
      const int8_t value = static_cast<int8_t>(Round(row[j] * inverse[j]));
      four[4 * j] = value;
      sums[j] += value;
    }
  }
  memcpy(args.w_sum + column, sums, sizeof(sums));
}

void Int8Multiply(const Int8Args& args, int64_t tile) {
  const int64_t end_of_block = (tile + 1) * kBlock;
  const int64_t end = end_of_block < args.rows ? end_of_block : args.rows;
  for (int64_t panel = 0; panel < args.panels(); ++panel) {
    int64_t row = tile * kBlock;
    for (; row + 8 <= end; row += 8) MultiplyRows<8>(args, row, panel);
    for (; row < end; ++row) MultiplyRows<1>(args, row, panel);
  }
}

}  // namespace TILES_ISA
}  // namespace transformer
