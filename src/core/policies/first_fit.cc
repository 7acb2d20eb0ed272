#include "core/policies/first_fit.h"

#include "core/policies/free_line.h"

namespace jax_bfc {

std::unique_ptr<Policy> MakeFirstFit(bool whole_range_free) {
  return std::make_unique<FreeLine<FirstFitIndex>>(whole_range_free);
}

}  // namespace jax_bfc
