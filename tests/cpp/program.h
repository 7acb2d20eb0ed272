// Random programs for an arena: printable operations, made from a seed.
#ifndef JAX_BFC_TESTS_CPP_PROGRAM_H_
#define JAX_BFC_TESTS_CPP_PROGRAM_H_

#include <cmath>
#include <cstdint>
#include <ostream>
#include <random>
#include <string>
#include <variant>
#include <vector>

namespace jax_bfc::testing {

struct Allocate {
  uint64_t bytes, alignment;
};
struct TryAllocate {
  uint64_t bytes, alignment;
};
struct Free {
  uint64_t index;  // of what is live, modulo how many there are
};
struct Grow {
  uint64_t bytes, alignment;
};
struct Trim {};
struct SetLimit {
  uint64_t bytes;  // at least what is mapped, whatever this says
};
struct SetGrowth {
  uint64_t initial_bytes;
  double growth_factor;
  uint64_t max_growth_bytes;
};
struct SetCapacity {  // of the source
  uint64_t bytes;
};
struct RefuseGrants {
  int times;
};
struct RefuseReserves {
  int times;
};
struct RefuseUnmaps {
  int times;
};
struct ResetPeaks {};

using Op = std::variant<Allocate, TryAllocate, Free, Grow, Trim, SetLimit,
                        SetGrowth, SetCapacity, RefuseGrants, RefuseReserves,
                        RefuseUnmaps, ResetPeaks>;
using Program = std::vector<Op>;

// How the arena and its source are made.
struct Setup {
  bool virtual_memory;
  bool tells_available;
  uint64_t granularity, limit, initial_bytes;
  double growth_factor;
  uint64_t max_growth_bytes;
};

// As a C++ literal.
inline std::ostream& operator<<(std::ostream& out, const Op& op) {
  struct Printer {
    std::ostream& out;
    void operator()(const Allocate& o) {
      out << "Allocate{" << o.bytes << ", " << o.alignment << "}";
    }
    void operator()(const TryAllocate& o) {
      out << "TryAllocate{" << o.bytes << ", " << o.alignment << "}";
    }
    void operator()(const Free& o) { out << "Free{" << o.index << "}"; }
    void operator()(const Grow& o) {
      out << "Grow{" << o.bytes << ", " << o.alignment << "}";
    }
    void operator()(const Trim&) { out << "Trim{}"; }
    void operator()(const SetLimit& o) { out << "SetLimit{" << o.bytes << "}"; }
    void operator()(const SetGrowth& o) {
      out << "SetGrowth{" << o.initial_bytes << ", " << o.growth_factor << ", "
          << o.max_growth_bytes << "}";
    }
    void operator()(const SetCapacity& o) {
      out << "SetCapacity{" << o.bytes << "}";
    }
    void operator()(const RefuseGrants& o) {
      out << "RefuseGrants{" << o.times << "}";
    }
    void operator()(const RefuseReserves& o) {
      out << "RefuseReserves{" << o.times << "}";
    }
    void operator()(const RefuseUnmaps& o) {
      out << "RefuseUnmaps{" << o.times << "}";
    }
    void operator()(const ResetPeaks&) { out << "ResetPeaks{}"; }
  };
  std::visit(Printer{out}, op);
  return out;
}

inline std::ostream& operator<<(std::ostream& out, const Setup& s) {
  return out << std::boolalpha << "{" << s.virtual_memory << ", "
             << s.tells_available << ", " << s.granularity << ", " << s.limit
             << ", " << s.initial_bytes << ", " << s.growth_factor << ", "
             << s.max_growth_bytes << "}";
}

enum class Sizes { kLogUniform, kFew, kEqual, kTiny, kAligned };
inline constexpr Sizes kAllSizes[] = {Sizes::kLogUniform, Sizes::kFew,
                                      Sizes::kEqual, Sizes::kTiny,
                                      Sizes::kAligned};
inline const char* Name(Sizes sizes) {
  constexpr const char* kNames[] = {"log-uniform", "few sizes", "equal sizes",
                                    "tiny", "aligned"};
  return kNames[static_cast<int>(sizes)];
}

// Writes programs: waves of allocation up to hundreds of live chunks and down
// again, now and then a trim, a new limit, or a source in a bad mood.
class ProgramWriter {
 public:
  ProgramWriter(uint64_t seed, Sizes sizes, bool virtual_memory)
      : random_(seed), sizes_(sizes) {
    setup_.virtual_memory = virtual_memory;
    setup_.tells_available = Chance(0.3);
    // Small steps where sizes are small, so that they come and go as often.
    const bool small = sizes == Sizes::kTiny || sizes == Sizes::kEqual;
    const int bits = small ? 12 : 16 + static_cast<int>(Below(6));
    setup_.granularity = uint64_t{1} << bits;
    setup_.limit =
        setup_.granularity * (small ? 30 + Below(170) : 100 + Below(1000));
    setup_.initial_bytes = setup_.granularity * (1 + Below(4));
    setup_.growth_factor = 1 + static_cast<double>(Below(5)) / 2;
    setup_.max_growth_bytes = setup_.granularity * (1 + Below(64));
    equal_bytes_ = 256 * (1 + Below(12));
  }

  const Setup& setup() const { return setup_; }

  Program Write(size_t ops) {
    Program program;
    program.reserve(ops);
    while (program.size() < ops) program.push_back(Next());
    return program;
  }

 private:
  Op Next() {
    if (Chance(0.01)) return Rare();
    if (live_ >= wave_top_) rising_ = false;
    if (live_ == 0) {
      rising_ = true;
      wave_top_ = Chance(0.1) ? 1500 : 20 + Below(300);
    }
    if (Chance(rising_ ? 0.65 : 0.35) || live_ == 0) {
      ++live_;
      if (Chance(0.02)) return TryAllocate{Bytes(), Alignment()};
      return Allocate{Bytes(), Alignment()};
    }
    --live_;
    return Free{Below(1 << 20)};
  }

  Op Rare() {
    switch (Below(16)) {
      case 0:
      case 1:
        return Grow{Bytes(), Alignment()};
      case 2:
      case 3:
        return SetLimit{setup_.limit / 2 + Below(setup_.limit)};
      case 4:
        return SetGrowth{setup_.granularity * (1 + Below(8)),
                         1 + static_cast<double>(Below(4)),
                         setup_.granularity * (1 + Below(64))};
      case 5:
        return SetCapacity{setup_.limit / 4 * (2 + Below(4))};
      case 6:
      case 7:
        return RefuseGrants{static_cast<int>(1 + Below(4))};
      case 8:
        return RefuseReserves{static_cast<int>(1 + Below(3))};
      case 9:
        return RefuseUnmaps{static_cast<int>(1 + Below(2))};
      case 10:
        return ResetPeaks{};
      default:
        return Trim{};
    }
  }

  uint64_t Bytes() {
    switch (sizes_) {
      case Sizes::kLogUniform:
        return LogUniform(setup_.limit / 16);
      case Sizes::kFew: {
        constexpr uint64_t kFew[] = {0, 300, 4096, 65536, 1 << 20, 3 << 20};
        const uint64_t bytes = kFew[Below(6)];
        return bytes < setup_.limit / 32 ? bytes : 512;
      }
      case Sizes::kEqual:
        return Chance(0.97) ? equal_bytes_ : equal_bytes_ * (2 + Below(8));
      case Sizes::kTiny:
        return Below(1024);
      case Sizes::kAligned:
        return LogUniform(setup_.limit / 64);
    }
    return 0;
  }

  uint64_t Alignment() {
    if (sizes_ == Sizes::kAligned) return uint64_t{1} << Below(22);
    return Chance(0.98) ? 256 : uint64_t{1} << Below(14);
  }

  uint64_t LogUniform(uint64_t most) {
    const double exponent = std::uniform_real_distribution<double>(
        0, std::log2(static_cast<double>(most)))(random_);
    return static_cast<uint64_t>(std::exp2(exponent));
  }
  uint64_t Below(uint64_t n) { return random_() % n; }
  bool Chance(double p) {
    return static_cast<double>(random_() >> 11) * 0x1p-53 < p;
  }

  std::mt19937_64 random_;
  const Sizes sizes_;
  Setup setup_;
  uint64_t equal_bytes_;
  uint64_t live_ = 0;  // as if no allocation failed
  uint64_t wave_top_ = 0;
  bool rising_ = true;
};

}  // namespace jax_bfc::testing

#endif  // JAX_BFC_TESTS_CPP_PROGRAM_H_
