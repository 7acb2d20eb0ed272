#include "core/policies/xla_bfc.h"

#include "core/policies/free_line.h"

namespace jax_bfc {
namespace {

class XlaBfc : public Policy {
 public:
  explicit XlaBfc(bool whole_range_free) : line_(whole_range_free) {}

  std::optional<Piece> Allocate(uint64_t bytes) override {
    return line_.Take(RoundedBytes(bytes), XlaSplits);
  }
  void Free(Piece piece) override { line_.Give(piece); }
  uint64_t high_water_bytes() const override {
    return line_.high_water_bytes();
  }
  FreeSpace free_space() const override { return line_.free_space(); }

 private:
  FreeLine<XlaBins> line_;
};

}  // namespace

std::unique_ptr<Policy> MakeXlaBfc(bool whole_range_free) {
  return std::make_unique<XlaBfc>(whole_range_free);
}

}  // namespace jax_bfc
