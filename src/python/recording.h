// Recordings for Python code.
#ifndef JAX_BFC_PYTHON_RECORDING_H_
#define JAX_BFC_PYTHON_RECORDING_H_

#include <nanobind/nanobind.h>

namespace jax_bfc {
void BindRecording(nanobind::module_& m);
}  // namespace jax_bfc

#endif  // JAX_BFC_PYTHON_RECORDING_H_
