// XLA's rules (xla/tsl/framework/bfc_allocator.cc): sizes round up to 256 bytes;
// 21 bins, the k-th for chunks from 256 * 2^k bytes on; a request searches its
// own bin and then the larger ones, each by (size, address), and takes the first
// chunk that fits. That chunk is split only if it is at least twice the request
// or leaves 128 MiB or more; free neighbours join at once.
//
// Leaves out: growth by regions, which do not join (XLA takes one by default);
// the memory limit and retrying; spatial partitioning and time stamps;
// alignments above 256. XLA gives a request of 0 bytes a null pointer.
#ifndef JAX_BFC_CORE_POLICIES_XLA_BFC_H_
#define JAX_BFC_CORE_POLICIES_XLA_BFC_H_

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <optional>
#include <set>
#include <utility>

#include "core/policies/policy.h"
#include "core/size_class.h"

namespace jax_bfc {

class XlaBins {
 public:
  void Insert(Piece hole) {
    bins_[BinFor(hole.bytes)].insert({hole.bytes, hole.address});
  }
  void Erase(Piece hole) {
    bins_[BinFor(hole.bytes)].erase({hole.bytes, hole.address});
  }
  std::optional<Piece> Find(uint64_t bytes) const {
    for (int bin = BinFor(bytes); bin < kBins; ++bin) {
      const auto found = bins_[bin].lower_bound({bytes, 0});
      if (found != bins_[bin].end()) return Piece{found->second, found->first};
    }
    return std::nullopt;
  }
  static constexpr bool Splits(uint64_t chunk_bytes, uint64_t bytes) {
    return chunk_bytes >= bytes * 2 || chunk_bytes - bytes >= kMostWasteBytes;
  }

  static constexpr uint64_t kMostWasteBytes = uint64_t{128} << 20;
  static constexpr int kBins = 21;
  static constexpr int BinFor(uint64_t bytes) {
    return std::min<int>(kBins - 1, std::bit_width(bytes / kQuantum) - 1);
  }

 private:
  std::array<std::set<std::pair<uint64_t, uint64_t>>, kBins> bins_;
};
static_assert(XlaBins::BinFor(256) == 0);
static_assert(XlaBins::BinFor(511 * 256) == 8);
static_assert(XlaBins::BinFor(512 * 256) == 9);
static_assert(XlaBins::BinFor(uint64_t{1} << 40) == 20);
static_assert(XlaBins::Splits(512, 256) && !XlaBins::Splits(768, 512));
static_assert(XlaBins::Splits(uint64_t{384} << 20, uint64_t{256} << 20));

}  // namespace jax_bfc

#endif  // JAX_BFC_CORE_POLICIES_XLA_BFC_H_
