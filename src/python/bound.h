// Classes of a module that may be imported more than once.
#ifndef JAX_BFC_PYTHON_BOUND_H_
#define JAX_BFC_PYTHON_BOUND_H_

#include <nanobind/nanobind.h>

namespace jax_bfc {

// Whether Python has a class for T from an earlier import of this module, whose
// objects or whose module are still there; `m` then gets that one. nanobind knows
// one class for each type, and would leave the name out.
template <typename T>
bool BoundAlready(nanobind::module_& m, const char* name) {
  const nanobind::handle made = nanobind::type<T>();
  if (!made.is_valid()) return false;
  m.attr(name) = made;
  return true;
}

}  // namespace jax_bfc

#endif  // JAX_BFC_PYTHON_BOUND_H_
