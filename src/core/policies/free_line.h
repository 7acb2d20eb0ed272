// Policies with holes of any size, on a line of addresses that grows at its end.
// Sizes round up to 256 bytes; neighbouring holes are always joined.
//
// An Index is the policy's rule:
//   void Insert(Piece), void Erase(Piece)
//   std::optional<Piece> Find(uint64_t bytes): a hole of at least `bytes`
//   static bool Splits(uint64_t hole_bytes, uint64_t bytes): whether a hole that
//     is larger is cut
#ifndef JAX_BFC_CORE_POLICIES_FREE_LINE_H_
#define JAX_BFC_CORE_POLICIES_FREE_LINE_H_

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <optional>

#include "core/policies/policy.h"
#include "core/size_class.h"

namespace jax_bfc {

template <typename Index>
class FreeLine : public Policy {
 public:
  explicit FreeLine(bool whole_range_free)
      : whole_range_free_(whole_range_free) {}

  // The start of the hole that the index finds; else the end of the line.
  std::optional<Piece> Allocate(uint64_t requested_bytes) override {
    const uint64_t bytes = RoundedBytes(requested_bytes);
    const std::optional<Piece> hole = index_.Find(bytes);
    if (!hole) return TakeAtEnd(bytes);
    Remove(*hole);
    if (hole->bytes == bytes || !Index::Splits(hole->bytes, bytes)) return hole;
    Insert({hole->address + bytes, hole->bytes - bytes});
    return Piece{hole->address, bytes};
  }

  void Free(Piece piece) override {
    auto next = holes_.lower_bound(piece.address);
    if (next != holes_.begin()) {
      const auto previous = std::prev(next);
      const Piece lower{previous->first, previous->second};
      if (lower.end() == piece.address) {
        Remove(lower);
        piece = {lower.address, lower.bytes + piece.bytes};
      }
    }
    if (next != holes_.end() && next->first == piece.end()) {
      const Piece upper{next->first, next->second};
      Remove(upper);
      piece.bytes += upper.bytes;
    }
    if (whole_range_free_ && piece.end() == end_) {
      end_ = piece.address;
    } else {
      Insert(piece);
    }
  }

  uint64_t high_water_bytes() const override { return high_water_bytes_; }
  FreeSpace free_space() const override {
    FreeSpace space;
    for (const auto& [address, bytes] : holes_) space.Add(bytes);
    if (high_water_bytes_ > end_) space.Add(high_water_bytes_ - end_);
    return space;
  }

 private:
  // From the hole at the end on, if there is one.
  std::optional<Piece> TakeAtEnd(uint64_t bytes) {
    uint64_t start = end_;
    if (!holes_.empty()) {
      const auto last = std::prev(holes_.end());
      const Piece hole{last->first, last->second};
      if (hole.end() == end_) start = hole.address;
    }
    if (bytes > kPolicyRangeBytes - start) return std::nullopt;
    if (start != end_) Remove({start, end_ - start});
    end_ = start + bytes;
    high_water_bytes_ = std::max(high_water_bytes_, end_);
    return Piece{start, bytes};
  }

  void Insert(Piece hole) {
    holes_.emplace(hole.address, hole.bytes);
    index_.Insert(hole);
  }
  void Remove(Piece hole) {
    holes_.erase(hole.address);
    index_.Erase(hole);
  }

  const bool whole_range_free_;
  std::map<uint64_t, uint64_t> holes_;  // address to bytes
  Index index_;
  uint64_t end_ = 0;
  uint64_t high_water_bytes_ = 0;
};

}  // namespace jax_bfc

#endif  // JAX_BFC_CORE_POLICIES_FREE_LINE_H_
