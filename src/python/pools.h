// Pools for Python code.
#ifndef JAX_BFC_PYTHON_POOLS_H_
#define JAX_BFC_PYTHON_POOLS_H_

#include <cstdint>
#include <stdexcept>
#include <string>

#include "pool/registry.h"

namespace jax_bfc {

// The pool with this index, made if need be; RuntimeError where there is none.
inline Pool& PoolOrThrow(uint32_t index) {
  std::string why;
  Pool* pool = PoolOfDevice(index, &why);
  if (pool == nullptr) throw std::runtime_error("jax_bfc: " + why);
  return *pool;
}

}  // namespace jax_bfc

#endif  // JAX_BFC_PYTHON_POOLS_H_
