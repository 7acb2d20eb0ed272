// Address-ordered first fit (Knuth, The Art of Computer Programming 1, 2.5,
// algorithm A with holes in order of address): of the holes that fit, the one
// with the lowest address, always split; free neighbours join at once. Sizes
// round up to 256 bytes.
//
// Holes are kept by power of two. Any hole of a larger power fits, so only
// those of the request's own are looked at one by one.
//
// Leaves out: a roving start ("next fit"), and a least size of what is split
// off.
#ifndef JAX_BFC_CORE_POLICIES_FIRST_FIT_H_
#define JAX_BFC_CORE_POLICIES_FIRST_FIT_H_

#include <array>
#include <bit>
#include <cstdint>
#include <map>
#include <optional>

#include "core/policies/policy.h"

namespace jax_bfc {

class FirstFitIndex {
 public:
  void Insert(Piece hole) {
    holes_[std::bit_width(hole.bytes)].emplace(hole.address, hole.bytes);
  }
  void Erase(Piece hole) {
    holes_[std::bit_width(hole.bytes)].erase(hole.address);
  }
  std::optional<Piece> Find(uint64_t bytes) const {
    std::optional<Piece> lowest;
    const size_t own = std::bit_width(bytes);
    for (size_t power = own + 1; power < holes_.size(); ++power) {
      if (holes_[power].empty()) continue;
      const auto [address, size] = *holes_[power].begin();
      if (!lowest || address < lowest->address) lowest = Piece{address, size};
    }
    for (const auto& [address, size] : holes_[own]) {
      if (lowest && address > lowest->address) break;
      if (size >= bytes) return Piece{address, size};
    }
    return lowest;
  }
  static constexpr bool Splits(uint64_t, uint64_t) { return true; }

 private:
  std::array<std::map<uint64_t, uint64_t>, 65> holes_;  // address to bytes
};

}  // namespace jax_bfc

#endif  // JAX_BFC_CORE_POLICIES_FIRST_FIT_H_
