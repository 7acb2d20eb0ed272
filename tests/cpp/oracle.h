// An Oracle says what an Arena must do, from the rules alone: a sorted vector
// of segments that is searched from end to end. It includes nothing of src/.
//
// Fit: the smallest free segment of the rounded size, the lowest on a tie;
// for an alignment above 256, the first that fits of the 32 smallest, else the
// smallest of size + alignment - 256, else the first that fits.
// Growth: the lowest unmapped segment where the request fits once its start is
// mapped, what is free just below (and above, if all of it is mapped) counted.
// Trim: each step that is wholly free, up to the first of its segment that the
// source refuses to take back.
//
// It has a model of FakeSource inside, refusals included. Slow: O(segments) a
// call.
#ifndef JAX_BFC_TESTS_CPP_ORACLE_H_
#define JAX_BFC_TESTS_CPP_ORACLE_H_

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <vector>

namespace jax_bfc::testing {

class Oracle {
 public:
  enum class Kind { kFree, kInUse, kUnmapped };
  struct Segment {
    uint64_t begin, end, requested;
    uint64_t region;  // where its region begins
    Kind kind;
    uint64_t size() const { return end - begin; }
  };
  struct Config {
    bool virtual_memory = true;
    uint64_t granularity = 2 << 20;
    bool tells_available = false;
    uint64_t limit = 0;
    uint64_t initial = 2 << 20;
    double factor = 2;
    uint64_t max_step = 1 << 30;
  };
  struct Counters {
    uint64_t in_use = 0, requested = 0, free = 0, mapped = 0, reserved = 0;
    uint64_t largest_free = 0, chunks_in_use = 0, free_chunks = 0;
    uint64_t regions = 0, steps = 0, growths = 0, trims = 0;
    uint64_t peak_in_use = 0, peak_mapped = 0;
  };

  explicit Oracle(const Config& config) : config_(config) {}

  // Settings of the arena and moods of the source: change them at any time.
  Config& config() { return config_; }
  uint64_t capacity = std::numeric_limits<uint64_t>::max();
  int refuse_grants = 0, refuse_reserves = 0, refuse_unmaps = 0;

  std::optional<uint64_t> TryAllocate(uint64_t bytes, uint64_t alignment) {
    const uint64_t size = Rounded(bytes);
    const int fit = FindFit(size, alignment);
    if (fit < 0) return std::nullopt;
    const uint64_t begin = Up(segments_[fit].begin, alignment);
    int i = Cut(fit, begin);
    Cut(i, begin + size);
    segments_[i].kind = Kind::kInUse;
    segments_[i].requested = bytes;
    peak_in_use_ = std::max(peak_in_use_, counters().in_use);
    return begin;
  }

  std::optional<uint64_t> Allocate(uint64_t bytes, uint64_t alignment) {
    std::optional<uint64_t> address = TryAllocate(bytes, alignment);
    if (!address && Grow(bytes, alignment)) {
      address = TryAllocate(bytes, alignment);
    }
    return address;
  }

  void Free(uint64_t address) { Become(At(address), Kind::kFree); }

  bool Grow(uint64_t bytes, uint64_t alignment) {
    const uint64_t size = Rounded(bytes);
    if (!config_.virtual_memory) {
      uint64_t base = 0;
      const uint64_t step =
          Step(Up(size, config_.granularity), kNoBound,
               [&](uint64_t n) { return NewRegion(n, &base); });
      if (step == 0) return false;
      CountStep(base, step);
      Become(At(base), Kind::kFree);
      return true;
    }
    bool has_place = false;
    if (MapWhereItFits(size, alignment, &has_place)) return true;
    // More addresses help only where there was no place for the request.
    const uint64_t needed = Up(size, config_.granularity);
    if (has_place || size > config_.limit || needed > Room()) return false;
    uint64_t base = 0;
    for (uint64_t n = std::max(needed, Up(config_.limit, config_.granularity));
         !NewRegion(n, &base); n = Smaller(n, needed)) {
      if (n == needed) return false;
    }
    return MapWhereItFits(size, alignment, &has_place);
  }

  uint64_t Trimmable() const {
    uint64_t total = 0;
    for (const Segment& s : segments_) {
      if (s.kind != Kind::kFree) continue;
      for (const auto& [begin, size] : steps_) {
        if (begin >= s.begin && begin + size <= s.end) total += size;
      }
    }
    return total;
  }

  uint64_t Trim() {
    // The source is asked by segment, the smallest first.
    std::vector<Segment> free;
    for (const Segment& s : segments_) {
      if (s.kind == Kind::kFree) free.push_back(s);
    }
    std::sort(free.begin(), free.end(), Before);
    uint64_t total = 0;
    for (const Segment& s : free) {
      std::map<uint64_t, uint64_t> inside;
      for (const auto& [begin, size] : steps_) {
        if (begin >= s.begin && begin + size <= s.end) inside[begin] = size;
      }
      for (const auto& [begin, size] : inside) {
        if (config_.virtual_memory && refuse_unmaps > 0) {
          --refuse_unmaps;
          break;
        }
        total += size;
        ++trims_;
        steps_.erase(begin);
        const int i = Cut(At(begin), begin);
        Cut(i, begin + size);
        if (config_.virtual_memory) {
          Become(i, Kind::kUnmapped);
        } else {
          segments_.erase(segments_.begin() + i);
        }
      }
    }
    return total;
  }

  void ResetPeaks() {
    peak_in_use_ = counters().in_use;
    peak_mapped_ = Mapped();
  }

  Counters counters() const {
    Counters c;
    for (const Segment& s : segments_) {
      c.reserved += s.size();
      c.regions += s.begin == s.region;
      if (s.kind == Kind::kInUse) {
        ++c.chunks_in_use;
        c.in_use += s.size();
        c.requested += s.requested;
      } else if (s.kind == Kind::kFree) {
        ++c.free_chunks;
        c.free += s.size();
        c.largest_free = std::max(c.largest_free, s.size());
      }
    }
    c.mapped = Mapped();
    c.steps = steps_.size();
    c.growths = growths_;
    c.trims = trims_;
    c.peak_in_use = peak_in_use_;
    c.peak_mapped = peak_mapped_;
    return c;
  }

  // By address.
  const std::vector<Segment>& segments() const { return segments_; }
  uint64_t Mapped() const {
    uint64_t total = 0;
    for (const auto& [begin, size] : steps_) total += size;
    return total;
  }

 private:
  static constexpr uint64_t kNoBound = std::numeric_limits<uint64_t>::max();

  static uint64_t Up(uint64_t n, uint64_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
  }
  static uint64_t Rounded(uint64_t bytes) {
    return bytes == 0 ? 256 : Up(bytes, 256);
  }
  static bool Before(const Segment& a, const Segment& b) {
    return a.size() != b.size() ? a.size() < b.size() : a.begin < b.begin;
  }
  static bool Fits(const Segment& s, uint64_t size, uint64_t alignment) {
    return Up(s.begin, alignment) + size <= s.end;
  }

  int At(uint64_t address) const {
    const auto above = std::upper_bound(
        segments_.begin(), segments_.end(), address,
        [](uint64_t a, const Segment& s) { return a < s.begin; });
    return static_cast<int>(above - segments_.begin()) - 1;
  }

  // The first in order of the free segments of `size` that fit.
  int Smallest(uint64_t size, uint64_t alignment) const {
    int best = -1;
    for (int i = 0; i < static_cast<int>(segments_.size()); ++i) {
      const Segment& s = segments_[i];
      if (s.kind == Kind::kFree && s.size() >= size &&
          Fits(s, size, alignment) &&
          (best < 0 || Before(s, segments_[best]))) {
        best = i;
      }
    }
    return best;
  }

  int FindFit(uint64_t size, uint64_t alignment) const {
    const int first = Smallest(size, alignment);
    if (alignment <= 256 || first < 0) return first;
    // Is it one of the 32 smallest of the size, wherever those begin?
    int before = 0;
    for (const Segment& s : segments_) {
      before += s.kind == Kind::kFree && s.size() >= size &&
                Before(s, segments_[first]);
    }
    if (before < 32) return first;
    const int sure = Smallest(size + alignment - 256, 1);
    return sure >= 0 ? sure : first;
  }

  // Cuts segment `i` at `address`, if it is inside; the part that begins there.
  int Cut(int i, uint64_t address) {
    Segment upper = segments_[i];
    if (address <= upper.begin || address >= upper.end) return i;
    upper.begin = address;
    segments_[i].end = address;
    segments_.insert(segments_.begin() + i + 1, upper);
    return i + 1;
  }

  void Become(int i, Kind kind) {
    segments_[i].kind = kind;
    if (i + 1 < static_cast<int>(segments_.size())) JoinBelow(i + 1);
    if (i > 0) JoinBelow(i);
  }

  void JoinBelow(int i) {
    Segment& below = segments_[i - 1];
    if (below.region != segments_[i].region ||
        below.kind != segments_[i].kind || below.kind == Kind::kInUse) {
      return;
    }
    below.end = segments_[i].end;
    segments_.erase(segments_.begin() + i);
  }

  uint64_t Room() const {
    uint64_t room = config_.limit - std::min(config_.limit, Mapped());
    if (config_.tells_available) {
      room = std::min(room, capacity - std::min(capacity, Mapped()));
    }
    return room / config_.granularity * config_.granularity;
  }

  uint64_t Smaller(uint64_t refused, uint64_t needed) const {
    return std::max(needed,
                    refused / 2 / config_.granularity * config_.granularity);
  }

  bool Granted(uint64_t bytes) {
    if (refuse_grants > 0) return --refuse_grants, false;
    return Mapped() <= capacity && bytes <= capacity - Mapped();
  }

  // The bytes of the step that `grant` granted, 0 when none was.
  template <typename Grant>
  uint64_t Step(uint64_t needed, uint64_t bound, Grant grant) {
    if (needed > Room()) return 0;
    const double next = last_step_ == 0
                            ? static_cast<double>(config_.initial)
                            : static_cast<double>(last_step_) * config_.factor;
    const double most =
        static_cast<double>(std::max(config_.initial, config_.max_step));
    const uint64_t policy =
        std::max(config_.initial, static_cast<uint64_t>(std::min(next, most)));
    uint64_t step = std::min(
        {std::max(needed, Up(policy, config_.granularity)), bound, Room()});
    while (!grant(step)) {
      if (step == needed) return 0;
      step = Smaller(step, needed);
    }
    last_step_ = policy;
    return step;
  }

  void CountStep(uint64_t begin, uint64_t bytes) {
    steps_[begin] = bytes;
    ++growths_;
    peak_mapped_ = std::max(peak_mapped_, Mapped());
  }

  bool MapWhereItFits(uint64_t size, uint64_t alignment, bool* has_place) {
    const auto free_at = [&](size_t i, uint64_t region) -> uint64_t {
      if (i >= segments_.size()) return 0;
      const Segment& s = segments_[i];
      return s.kind == Kind::kFree && s.region == region ? s.size() : 0;
    };
    for (size_t i = 0; i < segments_.size(); ++i) {
      const Segment s = segments_[i];
      if (s.kind != Kind::kUnmapped) continue;
      const uint64_t end =
          Up(s.begin - free_at(i - 1, s.region), alignment) + size;
      if (end > s.end + free_at(i + 1, s.region)) continue;
      *has_place = true;
      const uint64_t missing =
          end > s.begin ? std::min(end, s.end) - s.begin : 1;
      const uint64_t step = Step(Up(missing, config_.granularity), s.size(),
                                 [&](uint64_t n) { return Granted(n); });
      if (step == 0) continue;
      CountStep(s.begin, step);
      Cut(static_cast<int>(i), s.begin + step);
      Become(static_cast<int>(i), Kind::kFree);
      return true;
    }
    return false;
  }

  // Takes a region at the lowest free multiple of 2 MiB.
  bool NewRegion(uint64_t bytes, uint64_t* base) {
    if (!config_.virtual_memory && !Granted(bytes)) return false;
    if (config_.virtual_memory && refuse_reserves > 0) {
      return --refuse_reserves, false;
    }
    *base = uint64_t{1} << 40;
    size_t i = 0;
    for (; i < segments_.size(); ++i) {
      if (*base + bytes <= segments_[i].begin) break;
      *base = Up(segments_[i].end, 2 << 20);
    }
    segments_.insert(segments_.begin() + i,
                     {*base, *base + bytes, 0, *base, Kind::kUnmapped});
    return true;
  }

  Config config_;
  std::vector<Segment> segments_;
  std::map<uint64_t, uint64_t> steps_;  // where they begin, and their bytes
  uint64_t last_step_ = 0;
  uint64_t peak_in_use_ = 0, peak_mapped_ = 0, growths_ = 0, trims_ = 0;
};

}  // namespace jax_bfc::testing

#endif  // JAX_BFC_TESTS_CPP_ORACLE_H_
