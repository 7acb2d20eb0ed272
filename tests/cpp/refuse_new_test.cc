// The refusals themselves: each allocation is refused once, in its round.
#include "refuse_new.h"

#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "check.h"

namespace jax_bfc::testing {
namespace {

struct alignas(64) Aligned {
  char bytes[64];
};

// Three allocations, whatever the optimizer thinks of them.
int Make(std::vector<std::unique_ptr<Aligned>>* kept) {
  try {
    kept->reserve(2);
    kept->push_back(std::make_unique<Aligned>());
    kept->push_back(std::make_unique<Aligned>());
  } catch (const std::bad_alloc&) {
    return -1;
  }
  return static_cast<int>(kept->size());
}

TEST(EachRoundRefusesTheNextAllocation) {
  std::vector<size_t> made;
  Refusals refusals;
  while (refusals.Next()) {
    std::vector<std::unique_ptr<Aligned>> kept;
    int result = 0;
    const bool refused = refusals.During([&] { result = Make(&kept); });
    CHECK_EQ(refused, refusals.refused());
    CHECK_EQ(result, refused ? -1 : 2);
    made.push_back(kept.size());
  }
  CHECK(made == std::vector<size_t>({0, 0, 1, 2}));
  CHECK_EQ(refusals.rounds(), 4);
}

TEST(ARoundGoesOnInItsLaterParts) {
  Refusals refusals;
  std::vector<int> refused_in;
  while (refusals.Next()) {
    for (int part = 0; part < 3; ++part) {
      std::unique_ptr<Aligned> kept;
      const bool refused =
          refusals.During([&] { kept.reset(new (std::nothrow) Aligned()); });
      CHECK_EQ(refused, kept == nullptr);
      if (refused) refused_in.push_back(part);
      kept = std::make_unique<Aligned>();  // outside: as ever
    }
  }
  CHECK(refused_in == std::vector<int>({0, 1, 2}));
}

TEST(OtherThreadsAreNotRefused) {
  std::vector<std::unique_ptr<Aligned>> kept;
  std::thread other;
  int result = 0;
  other = std::thread([&] { result = Make(&kept); });
  CHECK_EQ(RefuseAll([&] { other.join(); }), 0);
  CHECK_EQ(result, 2);
  std::vector<std::unique_ptr<Aligned>> none;
  CHECK_EQ(RefuseAll([&] { Make(&none); }), 1);
}

}  // namespace
}  // namespace jax_bfc::testing
