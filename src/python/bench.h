// `python -m jax_bfc bench`: the pool beside what handlers do without one.
#ifndef JAX_BFC_PYTHON_BENCH_H_
#define JAX_BFC_PYTHON_BENCH_H_

#include <nanobind/nanobind.h>

namespace jax_bfc {
void BindBench(nanobind::module_& m);
}  // namespace jax_bfc

#endif  // JAX_BFC_PYTHON_BENCH_H_
