// A FakeSource hands out addresses from 2^40 on, with no memory behind them.
//
// Addresses are the same on every machine: a new range starts at the lowest
// multiple of kMaxAlignment that is free, so that ranges are often adjacent
// and an address given back is soon used again.
//
// It counts calls, refuses on demand, and checks what MemorySource requires of
// its caller: the first call that breaks a rule is kept in error() and, unless
// the test wants to read it there, ends the program. So does the fuse: 1,000
// refusals in a row mean a growth loop that does not end.
//
// Never touches memory; not for use outside tests and simulation.
#ifndef JAX_BFC_SOURCE_FAKE_H_
#define JAX_BFC_SOURCE_FAKE_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <limits>
#include <map>
#include <new>
#include <string>

#include "core/memory_source.h"
#include "core/size_class.h"

namespace jax_bfc {

class FakeSource : public MemorySource {
 public:
  static constexpr uintptr_t kBase = uintptr_t{1} << 40;
  static constexpr int kFuse = 1000;

  struct Options {
    bool virtual_memory = true;
    size_t granularity = size_t{2} << 20;
    bool tells_available = false;  // AvailableBytes() is what capacity leaves
    bool keeps_errors = false;     // in error(), rather than to abort
  };
  // Calls by kind, and how many of them were refused.
  struct Calls {
    int reserve = 0, release = 0, map = 0, unmap = 0, refused = 0;
    bool operator==(const Calls&) const = default;
  };

  explicit FakeSource(const Options& options) : options_(options) {}
  FakeSource() : FakeSource(Options()) {}

  const char* name() const override { return "fake"; }
  size_t granularity() const override { return options_.granularity; }
  bool has_virtual_memory() const override { return options_.virtual_memory; }

  uintptr_t Reserve(size_t bytes) override {
    ++calls_.reserve;
    Expect(IsPositiveMultiple(bytes), "Reserve", 0, bytes, "a bad size");
    if (!options_.virtual_memory && Refuses(bytes)) return 0;
    if (options_.virtual_memory && refused_reserves_ > 0) {
      --refused_reserves_;
      Refused();
      return 0;
    }
    uintptr_t base = kBase;
    for (const auto& [start, size] : ranges_) {
      if (base + bytes <= start) break;
      base = RoundUp(start + size, kMaxAlignment);
    }
    if (!Keep(ranges_, base, bytes)) return 0;
    reserved_bytes_ += bytes;
    if (!options_.virtual_memory) mapped_bytes_ += bytes;
    return base;
  }

  void Release(uintptr_t base, size_t bytes) override {
    ++calls_.release;
    const auto range = ranges_.find(base);
    if (!Expect(range != ranges_.end() && range->second == bytes, "Release",
                base, bytes, "not a range that Reserve gave")) {
      return;
    }
    Expect(!AnyMapped(base, bytes), "Release", base, bytes, "still mapped");
    ranges_.erase(range);
    reserved_bytes_ -= bytes;
    if (!options_.virtual_memory) mapped_bytes_ -= bytes;
  }

  bool Map(uintptr_t address, size_t bytes) override {
    ++calls_.map;
    Expect(options_.virtual_memory, "Map", address, bytes,
           "the source has no virtual memory");
    Expect(IsPositiveMultiple(bytes) && address % options_.granularity == 0,
           "Map", address, bytes, "not of the granularity");
    Expect(IsReserved(address, bytes), "Map", address, bytes, "not reserved");
    Expect(!AnyMapped(address, bytes), "Map", address, bytes, "mapped already");
    if (Refuses(bytes)) return false;
    if (!Keep(mapped_, address, bytes)) return false;
    mapped_bytes_ += bytes;
    return true;
  }

  bool Unmap(uintptr_t address, size_t bytes) override {
    ++calls_.unmap;
    const auto step = mapped_.find(address);
    if (!Expect(step != mapped_.end() && step->second == bytes, "Unmap",
                address, bytes, "not exactly what was mapped")) {
      return false;
    }
    if (refused_unmaps_ > 0) {
      --refused_unmaps_;
      return Refused();
    }
    mapped_.erase(step);
    mapped_bytes_ -= bytes;
    return true;
  }

  size_t AvailableBytes() const override {
    if (!options_.tells_available) return MemorySource::AvailableBytes();
    return capacity_ - std::min(capacity_, mapped_bytes_);
  }

  // Refuses what would make more than `bytes` mapped.
  void set_capacity(size_t bytes) { capacity_ = bytes; }
  // Refuses the next `n` grants of memory (Map; Reserve without virtual
  // memory), of address ranges, and of calls to Unmap.
  void RefuseNext(int n) { refused_grants_ = n; }
  void RefuseAlways(bool refuse) { refuse_always_ = refuse; }
  void RefuseNextReserve(int n) { refused_reserves_ = n; }
  void RefuseNextUnmap(int n) { refused_unmaps_ = n; }

  // Refusals so far no longer count as in a row with those to come.
  void ResetFuse() { refusals_in_a_row_ = 0; }

  const Calls& calls() const { return calls_; }
  size_t mapped_bytes() const { return mapped_bytes_; }
  size_t reserved_bytes() const { return reserved_bytes_; }
  // The first broken rule; empty when there was none.
  const std::string& error() const { return error_; }

 private:
  using Ranges = std::map<uintptr_t, size_t>;  // address to bytes

  bool IsPositiveMultiple(size_t bytes) const {
    return bytes > 0 && bytes % options_.granularity == 0;
  }

  bool IsReserved(uintptr_t address, size_t bytes) const {
    auto range = ranges_.upper_bound(address);
    if (range == ranges_.begin()) return false;
    --range;
    return address + bytes <= range->first + range->second;
  }

  bool AnyMapped(uintptr_t address, size_t bytes) const {
    const auto after = mapped_.lower_bound(address + bytes);
    if (after == mapped_.begin()) return false;
    const auto last = std::prev(after);
    return last->first + last->second > address;
  }

  bool Refuses(size_t bytes) {
    const size_t left = capacity_ - std::min(capacity_, mapped_bytes_);
    if (refused_grants_ > 0) {
      --refused_grants_;
    } else if (!refuse_always_ && bytes <= left) {
      refusals_in_a_row_ = 0;
      return false;
    }
    Refused();
    return true;
  }

  // Where the host has no memory for its record, a call is refused.
  bool Keep(Ranges& ranges, uintptr_t address, size_t bytes) {
    try {
      ranges.emplace(address, bytes);
      return true;
    } catch (const std::bad_alloc&) {
      return Refused();
    }
  }

  // Counts a refusal; always false, the answer to give.
  bool Refused() {
    ++calls_.refused;
    if (++refusals_in_a_row_ < kFuse) return false;
    std::fprintf(stderr,
                 "FakeSource: %d refusals in a row, a loop that does "
                 "not end\n",
                 kFuse);
    std::abort();
  }

  bool Expect(bool holds, const char* call, uintptr_t address, size_t bytes,
              const char* problem) {
    if (holds || !error_.empty()) return holds;
    char text[160];
    std::snprintf(text, sizeof text, "FakeSource::%s(%#zx, %zu): %s", call,
                  static_cast<size_t>(address), bytes, problem);
    error_ = text;
    if (options_.keeps_errors) return false;
    std::fprintf(stderr, "%s\n", text);
    std::abort();
  }

  const Options options_;
  Ranges ranges_;
  Ranges mapped_;  // by step; with virtual memory only
  size_t reserved_bytes_ = 0;
  size_t mapped_bytes_ = 0;
  size_t capacity_ = std::numeric_limits<size_t>::max();
  int refused_grants_ = 0;
  int refused_reserves_ = 0;
  int refused_unmaps_ = 0;
  int refusals_in_a_row_ = 0;
  bool refuse_always_ = false;
  Calls calls_;
  std::string error_;
};

}  // namespace jax_bfc

#endif  // JAX_BFC_SOURCE_FAKE_H_
