// Slabs (Bonwick, The Slab Allocator, USENIX 1994) with jemalloc's size classes:
// four to each power of two, and multiples of 256 bytes: 256, 512, 768, 1024,
// 1280 and so on to 2048, 2560, 3072 and so on. A request of up to 16 KiB takes
// the lowest free slot of the lowest slab of its class that has one; a slab is
// 64 KiB cut into slots of one class, obtained when its class has no free slot
// and given back when all of its slots are free. A larger request takes a run of
// its class's size. Runs and slabs come from one line by address-ordered first
// fit.
//
// Leaves out: caches by thread and by CPU, slab colouring, constructed objects,
// slabs sized to their class, and keeping empty slabs for a while.
#include <bit>
#include <map>
#include <set>
#include <vector>

#include "core/policies/first_fit.h"
#include "core/policies/free_line.h"
#include "core/policies/policy.h"
#include "core/size_class.h"

namespace jax_bfc {
namespace {

constexpr uint64_t kSlabBytes = 64 << 10;
constexpr uint64_t kMostSlotBytes = 16 << 10;

// The least class that holds `bytes`.
constexpr uint64_t ClassBytes(uint64_t bytes) {
  const uint64_t rounded = RoundedBytes(bytes);
  const uint64_t step = std::bit_floor(rounded - 1) / 4;
  return step <= kQuantum ? rounded : RoundUp(rounded, step);
}
static_assert(ClassBytes(0) == 256);
static_assert(ClassBytes(1024) == 1024);
static_assert(ClassBytes(1025) == 1280);
static_assert(ClassBytes(2049) == 2560);
static_assert(ClassBytes(5000) == 5120);
static_assert(ClassBytes((1 << 20) + 1) == (1 << 20) + (1 << 18));

class Slab : public Policy {
 public:
  explicit Slab(bool whole_range_free) : line_(whole_range_free) {}

  std::optional<Piece> Allocate(uint64_t bytes) override {
    const uint64_t size = ClassBytes(bytes);
    if (size > kMostSlotBytes) return line_.Allocate(size);
    std::set<uint64_t>& partial = partial_[size];
    if (partial.empty()) {
      const std::optional<Piece> run = line_.Allocate(kSlabBytes);
      if (!run) return std::nullopt;
      Slots slots{size, {}};
      for (uint64_t slot = kSlabBytes / size; slot-- > 0;) {
        slots.free.insert(run->address + slot * size);
      }
      slabs_.emplace(run->address, slots);
      partial.insert(run->address);
    }
    const uint64_t slab = *partial.begin();
    std::set<uint64_t>& free = slabs_.at(slab).free;
    const Piece piece{*free.begin(), size};
    free.erase(free.begin());
    if (free.empty()) partial.erase(slab);
    return piece;
  }

  void Free(Piece piece) override {
    if (piece.bytes > kMostSlotBytes) {
      line_.Free(piece);
      return;
    }
    const auto slab = std::prev(slabs_.upper_bound(piece.address));
    slab->second.free.insert(piece.address);
    if (slab->second.free.size() < kSlabBytes / piece.bytes) {
      partial_[piece.bytes].insert(slab->first);
      return;
    }
    partial_[piece.bytes].erase(slab->first);
    line_.Free({slab->first, kSlabBytes});
    slabs_.erase(slab);
  }

  uint64_t high_water_bytes() const override {
    return line_.high_water_bytes();
  }
  FreeSpace free_space() const override {
    FreeSpace space = line_.free_space();
    for (const auto& [address, slots] : slabs_) {
      for (size_t i = 0; i < slots.free.size(); ++i) space.Add(slots.bytes);
    }
    return space;
  }

 private:
  struct Slots {
    uint64_t bytes;
    std::set<uint64_t> free;  // addresses
  };

  FreeLine<FirstFitIndex> line_;
  std::map<uint64_t, Slots> slabs_;                 // by address
  std::map<uint64_t, std::set<uint64_t>> partial_;  // by slot bytes
};

}  // namespace

std::unique_ptr<Policy> MakeSlab(bool whole_range_free) {
  return std::make_unique<Slab>(whole_range_free);
}

}  // namespace jax_bfc
