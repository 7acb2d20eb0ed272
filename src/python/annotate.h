// Scratch as ranges in profilers.
#ifndef JAX_BFC_PYTHON_ANNOTATE_H_
#define JAX_BFC_PYTHON_ANNOTATE_H_

#include <nanobind/nanobind.h>

namespace jax_bfc {
void BindAnnotate(nanobind::module_& m);
}  // namespace jax_bfc

#endif  // JAX_BFC_PYTHON_ANNOTATE_H_
