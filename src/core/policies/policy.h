// Reference policies: other ways to place allocations on one line of addresses,
// for comparison with the arena by replay of traces.
//
// Each is written for its rule, not for speed or use: it works on numbers, holds
// no memory, and its header says what it leaves out of what it is named after.
// Addresses start at 0. The line has no bound below kPolicyRangeBytes; what lies
// above every piece so far is used where nothing below fits, and by no more than
// is missing, as in Replay.
//
// All give a request of 0 bytes what they give a request of 1.
#ifndef JAX_BFC_CORE_POLICIES_POLICY_H_
#define JAX_BFC_CORE_POLICIES_POLICY_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>

namespace jax_bfc {

// So far beyond what a trace may have live that no rounding gets there.
inline constexpr uint64_t kPolicyRangeBytes = uint64_t{1} << 60;

struct Piece {
  uint64_t address;
  uint64_t bytes;

  uint64_t end() const { return address + bytes; }
  bool operator==(const Piece&) const = default;
};

// What is free below the high water.
struct FreeSpace {
  uint64_t bytes = 0;
  uint64_t largest_bytes = 0;

  void Add(uint64_t hole_bytes) {
    bytes += hole_bytes;
    largest_bytes = std::max(largest_bytes, hole_bytes);
  }
  // 1 - largest free / total free; 0 when nothing is free.
  double fragmentation() const {
    if (bytes == 0) return 0;
    return 1 - static_cast<double>(largest_bytes) / static_cast<double>(bytes);
  }
};

class Policy {
 public:
  virtual ~Policy() = default;

  // Nothing when the line is exhausted. REQUIRES: bytes <= kReplayRangeBytes.
  virtual std::optional<Piece> Allocate(uint64_t bytes) = 0;
  // REQUIRES: Allocate gave `piece`, and it is in use.
  virtual void Free(Piece piece) = 0;

  // The end of the highest piece ever, slabs counted whole.
  virtual uint64_t high_water_bytes() const = 0;
  // May take time in proportion to what is free.
  virtual FreeSpace free_space() const = 0;
};

// With `whole_range_free`, what lies above every piece in use is one free chunk,
// with which pieces freed at its edge join, as in an allocator that takes all
// of its memory at the start. It makes a difference to MakeXlaBfc alone.
std::unique_ptr<Policy> MakeXlaBfc(bool whole_range_free);
std::unique_ptr<Policy> MakeBuddy(bool whole_range_free);
std::unique_ptr<Policy> MakeSlab(bool whole_range_free);
std::unique_ptr<Policy> MakeFirstFit(bool whole_range_free);

struct PolicyEntry {
  std::string_view name;
  std::unique_ptr<Policy> (*make)(bool whole_range_free);
};

inline constexpr PolicyEntry kPolicies[] = {{"xla", MakeXlaBfc},
                                            {"buddy", MakeBuddy},
                                            {"slab", MakeSlab},
                                            {"first_fit", MakeFirstFit}};

}  // namespace jax_bfc

#endif  // JAX_BFC_CORE_POLICIES_POLICY_H_
