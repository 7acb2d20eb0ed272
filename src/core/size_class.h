// Sizes, their rounding, and the bin that a size belongs to.
//
// Bins split each power of two into kSubBins parts, so a bin holds chunks that
// differ by at most 1 / kSubBins; the smallest hold one size each. (Masmano et
// al., TLSF, ECRTS 2004, use the same two levels.)
#ifndef JAX_BFC_CORE_SIZE_CLASS_H_
#define JAX_BFC_CORE_SIZE_CLASS_H_

#include <bit>
#include <cstddef>
#include <cstdint>

namespace jax_bfc {

inline constexpr size_t kQuantum = 256;  // rounding and least alignment
inline constexpr size_t kMaxAlignment = size_t{2} << 20;
// No machine has more: the sum of this, any alignment and any rounding cannot
// overflow.
inline constexpr size_t kMaxRequest = size_t{1} << 47;

constexpr size_t RoundUp(size_t n, size_t multiple) {
  return (n + multiple - 1) & ~(multiple - 1);
}
constexpr size_t RoundDown(size_t n, size_t multiple) {
  return n & ~(multiple - 1);
}

// The chunk bytes of a request. REQUIRES: bytes <= kMaxRequest.
constexpr size_t RoundedBytes(size_t bytes) {
  return bytes == 0 ? kQuantum : RoundUp(bytes, kQuantum);
}
static_assert(RoundedBytes(0) == 256);
static_assert(RoundedBytes(256) == 256);
static_assert(RoundedBytes(257) == 512);

constexpr bool IsValidAlignment(size_t alignment) {
  // std::has_single_bit would be a call where there is no popcnt instruction.
  return alignment != 0 && (alignment & (alignment - 1)) == 0 &&
         alignment <= kMaxAlignment;
}

inline constexpr int kSubBinBits = 6;
inline constexpr int kSubBins = 1 << kSubBinBits;
inline constexpr int kNumBins = (48 - 8 - kSubBinBits + 1) * kSubBins;

// REQUIRES: bytes is a positive multiple of kQuantum, below 2^48.
constexpr int BinForSize(size_t bytes) {
  const uint64_t units = bytes / kQuantum;
  if (units < kSubBins) return static_cast<int>(units) - 1;
  const int octave = std::bit_width(units) - 1 - kSubBinBits;
  return ((octave + 1) << kSubBinBits) +
         static_cast<int>((units >> octave) & (kSubBins - 1)) - 1;
}
static_assert(BinForSize(256) == 0);
static_assert(BinForSize(63 * 256) == 62);
static_assert(BinForSize(64 * 256) == 63);
static_assert(BinForSize(127 * 256) == 126);
static_assert(BinForSize(128 * 256) == 127);
static_assert(BinForSize(129 * 256) == 127);
static_assert(BinForSize((size_t{1} << 48) - 256) < kNumBins);

}  // namespace jax_bfc

#endif  // JAX_BFC_CORE_SIZE_CLASS_H_
