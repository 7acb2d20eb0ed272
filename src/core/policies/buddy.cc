// Binary buddies (Knowlton 1965; Knuth, The Art of Computer Programming 1, 2.5,
// algorithms R and S): sizes round up to powers of two from 256 bytes on. A
// request takes the smallest free block that fits, the lowest address on a tie,
// and halves it until it is of its size, keeping the lower half. A freed block
// joins with its buddy (the address with the bit of its size flipped) as long as
// that is free. The line is one free block at the start.
//
// Leaves out: giving back part of a block that is larger than what was asked.
#include <array>
#include <bit>
#include <set>

#include "core/policies/policy.h"
#include "core/size_class.h"

namespace jax_bfc {
namespace {

class Buddy : public Policy {
 public:
  Buddy() { free_[kOrders - 1].insert(0); }

  std::optional<Piece> Allocate(uint64_t bytes) override {
    const uint64_t block = std::bit_ceil(RoundedBytes(bytes));
    const int wanted = Order(block);
    int order = wanted;
    while (order < kOrders && free_[order].empty()) ++order;
    if (order == kOrders) return std::nullopt;
    const uint64_t address = *free_[order].begin();
    free_[order].erase(free_[order].begin());
    while (order > wanted) {
      --order;
      free_[order].insert(address + Bytes(order));
    }
    high_water_bytes_ = std::max(high_water_bytes_, address + block);
    return Piece{address, block};
  }

  void Free(Piece piece) override {
    uint64_t address = piece.address;
    int order = Order(piece.bytes);
    while (order < kOrders - 1 &&
           free_[order].erase(address ^ Bytes(order)) == 1) {
      address &= ~Bytes(order);
      ++order;
    }
    free_[order].insert(address);
  }

  uint64_t high_water_bytes() const override { return high_water_bytes_; }
  FreeSpace free_space() const override {
    FreeSpace space;
    for (int order = 0; order < kOrders; ++order) {
      for (const uint64_t address : free_[order]) {
        if (address >= high_water_bytes_) break;
        // A block that reaches beyond counts as far as there is memory.
        space.Add(std::min(Bytes(order), high_water_bytes_ - address));
      }
    }
    return space;
  }

 private:
  static constexpr uint64_t Bytes(int order) { return kQuantum << order; }
  static constexpr int Order(uint64_t block) {
    return std::countr_zero(block) - std::countr_zero(kQuantum);
  }
  static constexpr int kOrders =
      std::countr_zero(kPolicyRangeBytes) - std::countr_zero(kQuantum) + 1;
  static_assert(kQuantum << (kOrders - 1) == kPolicyRangeBytes);

  std::array<std::set<uint64_t>, kOrders> free_;  // by order, addresses
  uint64_t high_water_bytes_ = 0;
};

}  // namespace

std::unique_ptr<Policy> MakeBuddy(bool) { return std::make_unique<Buddy>(); }

}  // namespace jax_bfc
