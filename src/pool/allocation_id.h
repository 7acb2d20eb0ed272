// The id of an allocation says whose it is and which use of it, in 64 bits.
#ifndef JAX_BFC_POOL_ALLOCATION_ID_H_
#define JAX_BFC_POOL_ALLOCATION_ID_H_

#include <cstdint>

namespace jax_bfc {

struct AllocationId {
  static constexpr uint32_t kPoolBits = 12;
  static constexpr uint32_t kSlotBits = 7;
  static constexpr uint32_t kEntryBits = 24;
  static constexpr uint32_t kGenerationBits = 21;
  static_assert(kPoolBits + kSlotBits + kEntryBits + kGenerationBits == 64);

  uint32_t pool;
  uint32_t slot;        // of the pool
  uint32_t entry;       // of the slot
  uint32_t generation;  // of the entry: which use of it, from 1

  constexpr uint64_t Pack() const {
    return ((uint64_t{pool} << kSlotBits | slot) << kEntryBits | entry)
               << kGenerationBits |
           generation;
  }
  static constexpr AllocationId Unpack(uint64_t id) {
    const auto take = [&id](uint32_t bits) {
      const auto part = static_cast<uint32_t>(id & ((uint64_t{1} << bits) - 1));
      id >>= bits;
      return part;
    };
    AllocationId parts{};
    parts.generation = take(kGenerationBits);
    parts.entry = take(kEntryBits);
    parts.slot = take(kSlotBits);
    parts.pool = take(kPoolBits);
    return parts;
  }
  // The generation after this one; 0 is never one, so no id is 0.
  static constexpr uint32_t Next(uint32_t generation) {
    constexpr uint32_t kLast = (uint32_t{1} << kGenerationBits) - 1;
    return generation == kLast ? 1 : generation + 1;
  }
  bool operator==(const AllocationId&) const = default;
};
static_assert(AllocationId::Unpack(AllocationId{4095, 127, 5, 9}.Pack()) ==
              AllocationId{4095, 127, 5, 9});

}  // namespace jax_bfc

#endif  // JAX_BFC_POOL_ALLOCATION_ID_H_
