// Scratch for Python code: a chunk with a buffer and DLPack.
#ifndef JAX_BFC_PYTHON_SCRATCH_H_
#define JAX_BFC_PYTHON_SCRATCH_H_

#include <nanobind/nanobind.h>

namespace jax_bfc {
void BindScratch(nanobind::module_& m);
}  // namespace jax_bfc

#endif  // JAX_BFC_PYTHON_SCRATCH_H_
