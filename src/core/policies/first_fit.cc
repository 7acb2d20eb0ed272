#include "core/policies/first_fit.h"

#include "core/policies/free_line.h"
#include "core/size_class.h"

namespace jax_bfc {
namespace {

class FirstFit : public Policy {
 public:
  explicit FirstFit(bool whole_range_free) : line_(whole_range_free) {}

  std::optional<Piece> Allocate(uint64_t bytes) override {
    return line_.Take(RoundedBytes(bytes),
                      [](uint64_t, uint64_t) { return true; });
  }
  void Free(Piece piece) override { line_.Give(piece); }
  uint64_t high_water_bytes() const override {
    return line_.high_water_bytes();
  }
  FreeSpace free_space() const override { return line_.free_space(); }

 private:
  FreeLine<FirstFitIndex> line_;
};

}  // namespace

std::unique_ptr<Policy> MakeFirstFit(bool whole_range_free) {
  return std::make_unique<FirstFit>(whole_range_free);
}

}  // namespace jax_bfc
