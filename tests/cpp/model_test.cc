// Random programs on an arena and on the oracle, compared after each operation.
//
// A failing program is made as short as it gets and printed, ready to become a
// named test: CHECK_EQ(Difference(setup, program), "").
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <mutex>
#include <optional>
#include <span>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "core/arena.h"
#include "oracle.h"
#include "program.h"
#include "source/fake.h"

namespace jax_bfc::testing {
namespace {

struct Mismatch {
  size_t op;  // index in the program; its size for the end
  std::string text;
};

template <typename... Values>
std::string Text(const Values&... values) {
  std::ostringstream out;
  (out << ... << values);
  return out.str();
}

// An arena and the oracle, side by side.
class Duel {
 public:
  explicit Duel(const Setup& s)
      : source_({.virtual_memory = s.virtual_memory,
                 .granularity = s.granularity,
                 .tells_available = s.tells_available,
                 .keeps_errors = true}),
        arena_(
            std::in_place, &source_, s.limit,
            GrowthPolicy{s.initial_bytes, s.growth_factor, s.max_growth_bytes}),
        oracle_({.virtual_memory = s.virtual_memory,
                 .granularity = s.granularity,
                 .tells_available = s.tells_available,
                 .limit = s.limit,
                 .initial = s.initial_bytes,
                 .factor = s.growth_factor,
                 .max_step = s.max_growth_bytes}) {}

  // Does one operation on both; what differs then, or an empty text.
  std::string Do(const Op& op) {
    failed_ = false;
    source_.ResetFuse();
    std::string text = std::visit([&](const auto& o) { return Apply(o); }, op);
    if (text.empty()) text = DifferentStats();
    if (text.empty()) text = source_.error();
    return text;
  }

  // The whole map of chunks, and every invariant.
  std::string DeepCheck() {
    if (const auto broken = arena_->CheckInvariants()) return *broken;
    if (source_.mapped_bytes() != oracle_.Mapped()) {
      return Text("the source maps ", source_.mapped_bytes(), ", expected ",
                  oracle_.Mapped());
    }
    if (arena_->TrimmableBytes() != oracle_.Trimmable()) {
      return Text("trimmable bytes ", arena_->TrimmableBytes(), ", expected ",
                  oracle_.Trimmable());
    }
    for (const auto& [id, address] : live_) {
      if (arena_->Find(address) != id) return Text("Find(", address, ")");
    }
    const auto& expected = oracle_.segments();
    size_t i = 0;
    std::string text;
    arena_->ForEachChunk([&](const Chunk& c) {
      if (!text.empty()) return;
      if (i == expected.size()) {
        text = "more chunks than expected";
      } else if (c.address != expected[i].begin || c.end() != expected[i].end ||
                 static_cast<int>(c.state) !=
                     static_cast<int>(expected[i].kind)) {
        text = Text("chunk [", c.address, ", ", c.end(), ") expected [",
                    expected[i].begin, ", ", expected[i].end,
                    ") or of another state");
      }
      ++i;
    });
    if (text.empty() && i != expected.size()) return "chunks are missing";
    return text;
  }

  std::string End() {
    source_.RefuseNextUnmap(0);
    arena_.reset();
    if (!source_.error().empty()) return source_.error();
    if (source_.mapped_bytes() != 0 || source_.reserved_bytes() != 0) {
      return Text("the arena left ", source_.mapped_bytes(), " mapped and ",
                  source_.reserved_bytes(), " reserved");
    }
    return "";
  }

  // Whether the last operation found no room.
  bool failed() const { return failed_; }

 private:
  template <typename T>
  std::string Compare(const char* what, const T& is, const T& expected) {
    if (is == expected) return "";
    return Text(what, " is ", is, ", expected ", expected);
  }

  std::string Allocated(ChunkId id, const std::optional<uint64_t>& expected,
                        uint64_t bytes) {
    failed_ = id == kNoChunk;
    if (failed_ != !expected) {
      return failed_ ? Text("no chunk, expected one at ", *expected)
                     : Text("a chunk at ", arena_->chunk(id).address,
                            ", expected none");
    }
    if (failed_) return "";
    const Chunk& c = arena_->chunk(id);
    live_.emplace_back(id, c.address);
    if (c.requested_bytes != bytes || c.state != ChunkState::kInUse) {
      return "a chunk that is not in use, or of other requested bytes";
    }
    return Compare<uint64_t>("address", c.address, *expected);
  }

  std::string Apply(const Allocate& o) {
    return Allocated(arena_->Allocate(o.bytes, o.alignment),
                     oracle_.Allocate(o.bytes, o.alignment), o.bytes);
  }
  std::string Apply(const TryAllocate& o) {
    return Allocated(arena_->TryAllocate(o.bytes, o.alignment),
                     oracle_.TryAllocate(o.bytes, o.alignment), o.bytes);
  }
  std::string Apply(const Free& o) {
    if (live_.empty()) return "";
    const size_t index = o.index % live_.size();
    const auto [id, address] = live_[index];
    live_[index] = live_.back();
    live_.pop_back();
    if (arena_->chunk(id).address != address) return "a chunk in use moved";
    arena_->Free(id);
    oracle_.Free(address);
    return "";
  }
  std::string Apply(const Grow& o) {
    const bool grown = arena_->Grow(o.bytes, o.alignment);
    failed_ = !grown;
    return Compare("Grow", grown, oracle_.Grow(o.bytes, o.alignment));
  }
  std::string Apply(const Trim&) {
    return Compare<uint64_t>("Trim", arena_->Trim(), oracle_.Trim());
  }
  std::string Apply(const SetLimit& o) {
    const uint64_t limit = std::max(o.bytes, oracle_.Mapped());
    arena_->set_limit_bytes(limit);
    oracle_.config().limit = limit;
    return "";
  }
  std::string Apply(const SetGrowth& o) {
    arena_->set_growth({o.initial_bytes, o.growth_factor, o.max_growth_bytes});
    oracle_.config().initial = o.initial_bytes;
    oracle_.config().factor = o.growth_factor;
    oracle_.config().max_step = o.max_growth_bytes;
    return "";
  }
  std::string Apply(const SetCapacity& o) {
    source_.set_capacity(o.bytes);
    oracle_.capacity = o.bytes;
    return "";
  }
  std::string Apply(const RefuseGrants& o) {
    source_.RefuseNext(o.times);
    oracle_.refuse_grants = o.times;
    return "";
  }
  std::string Apply(const RefuseReserves& o) {
    source_.RefuseNextReserve(o.times);
    oracle_.refuse_reserves = o.times;
    return "";
  }
  std::string Apply(const RefuseUnmaps& o) {
    source_.RefuseNextUnmap(o.times);
    oracle_.refuse_unmaps = o.times;
    return "";
  }
  std::string Apply(const ResetPeaks&) {
    arena_->ResetPeaks();
    oracle_.ResetPeaks();
    return "";
  }

  std::string DifferentStats() {
    const ArenaStats is = arena_->stats();
    const Oracle::Counters c = oracle_.counters();
    const ArenaStats expected = {
        .bytes_in_use = c.in_use,
        .requested_bytes = c.requested,
        .free_bytes = c.free,
        .mapped_bytes = c.mapped,
        .reserved_bytes = c.reserved,
        .largest_free_bytes = c.largest_free,
        .chunks_in_use = c.chunks_in_use,
        .free_chunks = c.free_chunks,
        .regions = c.regions,
        .steps = c.steps,
        .peak_bytes_in_use = c.peak_in_use,
        .peak_mapped_bytes = c.peak_mapped,
        .growths = c.growths,
        .trims = c.trims,
    };
    if (is == expected) return "";
    std::string text = "stats differ:";
    const auto add = [&](const char* name, uint64_t a, uint64_t b) {
      if (a != b) text += Text(" ", name, " ", a, ", expected ", b, ";");
    };
    add("bytes_in_use", is.bytes_in_use, c.in_use);
    add("requested_bytes", is.requested_bytes, c.requested);
    add("free_bytes", is.free_bytes, c.free);
    add("mapped_bytes", is.mapped_bytes, c.mapped);
    add("reserved_bytes", is.reserved_bytes, c.reserved);
    add("largest_free_bytes", is.largest_free_bytes, c.largest_free);
    add("chunks_in_use", is.chunks_in_use, c.chunks_in_use);
    add("free_chunks", is.free_chunks, c.free_chunks);
    add("regions", is.regions, c.regions);
    add("steps", is.steps, c.steps);
    add("peak_bytes_in_use", is.peak_bytes_in_use, c.peak_in_use);
    add("peak_mapped_bytes", is.peak_mapped_bytes, c.peak_mapped);
    add("growths", is.growths, c.growths);
    add("trims", is.trims, c.trims);
    return text;
  }

  FakeSource source_;
  std::optional<Arena> arena_;
  Oracle oracle_;
  std::vector<std::pair<ChunkId, uint64_t>> live_;
  bool failed_ = false;
};

// Deep checks are made each `deep_every` operations and after each failure.
std::optional<Mismatch> Run(const Setup& setup, std::span<const Op> program,
                            size_t deep_every) {
  Duel duel(setup);
  for (size_t i = 0; i < program.size(); ++i) {
    std::string text = duel.Do(program[i]);
    if (text.empty() && (duel.failed() || (i + 1) % deep_every == 0)) {
      text = duel.DeepCheck();
    }
    if (!text.empty()) return Mismatch{i, text};
  }
  std::string text = duel.DeepCheck();
  if (text.empty()) text = duel.End();
  if (!text.empty()) return Mismatch{program.size(), text};
  return std::nullopt;
}

std::string Difference(const Setup& setup, const Program& program) {
  const std::optional<Mismatch> mismatch = Run(setup, program, 1);
  if (!mismatch) return "";
  return Text("operation ", mismatch->op, ": ", mismatch->text);
}

// Leaves out ever smaller pieces of a failing program while it still fails, for
// as long as `budget` operations last.
Program Shrink(const Setup& setup, Program program, size_t deep_every) {
  size_t budget = 3'000'000;
  for (size_t piece = program.size() / 2; piece > 0; piece /= 2) {
    for (size_t begin = 0; begin < program.size();) {
      if (budget < program.size()) return program;
      budget -= program.size();
      Program shorter(program.begin(), program.begin() + begin);
      const size_t end = std::min(begin + piece, program.size());
      shorter.insert(shorter.end(), program.begin() + end, program.end());
      const size_t every = program.size() < 300 ? 1 : deep_every;
      if (const auto mismatch = Run(setup, shorter, every)) {
        shorter.resize(std::min(shorter.size(), mismatch->op + 1));
        program = std::move(shorter);
      } else {
        begin += piece;
      }
    }
  }
  return program;
}

// Empty, or the report of a failing program.
std::string RunSeed(uint64_t seed, Sizes sizes, bool virtual_memory, size_t ops,
                    size_t deep_every) {
  ProgramWriter writer(seed, sizes, virtual_memory);
  Program program = writer.Write(ops);
  const auto mismatch = Run(writer.setup(), program, deep_every);
  if (!mismatch) return "";
  program.resize(std::min(program.size(), mismatch->op + 1));
  program = Shrink(writer.setup(), std::move(program), deep_every);
  std::ostringstream out;
  out << "seed " << seed << ", " << Name(sizes) << ", "
      << (virtual_memory ? "virtual memory" : "plain regions") << ": operation "
      << mismatch->op << ": " << mismatch->text
      << "\nThe shortest program found:\n  CHECK_EQ(Difference("
      << writer.setup() << ",\n      {";
  for (size_t i = 0; i < program.size(); ++i) {
    out << (i == 0 ? "" : i % 4 == 0 ? ",\n       " : ", ") << program[i];
  }
  out << "}), \"\");\n  " << Difference(writer.setup(), program);
  return out.str();
}

// Every seed with every distribution and both kinds of source, on all cores.
void RunAll(const std::vector<uint64_t>& seeds, size_t ops, size_t deep_every) {
  struct Case {
    uint64_t seed;
    Sizes sizes;
    bool virtual_memory;
  };
  std::vector<Case> cases;
  for (const uint64_t seed : seeds) {
    for (const Sizes sizes : kAllSizes) {
      for (const bool vm : {true, false}) cases.push_back({seed, sizes, vm});
    }
  }
  std::atomic<size_t> next = 0;
  std::mutex mutex;
  std::string first_failure;
  const auto work = [&] {
    for (size_t i; (i = next++) < cases.size();) {
      const Case& c = cases[i];
      const std::string text =
          RunSeed(c.seed, c.sizes, c.virtual_memory, ops, deep_every);
      if (text.empty()) continue;
      const std::lock_guard lock(mutex);
      if (first_failure.empty()) first_failure = text;
      next = cases.size();
    }
  };
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < std::max(1u, std::thread::hardware_concurrency());
       ++i) {
    threads.emplace_back(work);
  }
  for (std::thread& thread : threads) thread.join();
  std::printf("%zu operations in %zu programs; seeds", cases.size() * ops,
              cases.size());
  for (const uint64_t seed : seeds) {
    if (seed != seeds.front() + 8) {
      std::printf(" %llu", static_cast<unsigned long long>(seed));
      continue;
    }
    std::printf(" ... %llu", static_cast<unsigned long long>(seeds.back()));
    break;
  }
  std::printf("\n");
  if (!first_failure.empty()) Fail(__FILE__, __LINE__, first_failure);
}

// Under a sanitizer all costs tens of times as much, so that less is run.
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define JAX_BFC_SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define JAX_BFC_SANITIZED 1
#endif
#ifdef JAX_BFC_SANITIZED
constexpr size_t kShare = 25;
#else
constexpr size_t kShare = 1;
#endif

TEST(ShortProgramsDoAsTheOracleSays) {
  std::vector<uint64_t> seeds(100 / kShare);
  for (size_t i = 0; i < seeds.size(); ++i) seeds[i] = 1000 + i;
  RunAll(Seeds(seeds), 500, 1);
}

TEST(LongProgramsDoAsTheOracleSays) {
  RunAll(Seeds({1, 2, 3, 4, 5, 6, 7, 8}), 150'000 / kShare, 1000);
}

}  // namespace
}  // namespace jax_bfc::testing
