// Watching pools from Python: peaks, callbacks, snapshots, recordings.
#ifndef JAX_BFC_PYTHON_WATCH_H_
#define JAX_BFC_PYTHON_WATCH_H_

#include <nanobind/nanobind.h>

namespace jax_bfc {
void BindWatch(nanobind::module_& m);
}  // namespace jax_bfc

#endif  // JAX_BFC_PYTHON_WATCH_H_
