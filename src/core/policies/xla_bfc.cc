#include "core/policies/xla_bfc.h"

#include "core/policies/free_line.h"

namespace jax_bfc {

std::unique_ptr<Policy> MakeXlaBfc(bool whole_range_free) {
  return std::make_unique<FreeLine<XlaBins>>(whole_range_free);
}

}  // namespace jax_bfc
