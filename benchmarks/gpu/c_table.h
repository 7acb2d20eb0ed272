// jax_bfc's C table, as code that is no handler finds it.
#ifndef JAX_BFC_BENCHMARKS_GPU_C_TABLE_H_
#define JAX_BFC_BENCHMARKS_GPU_C_TABLE_H_

#include <dlfcn.h>

#include <stdexcept>
#include <string>

#include "jax_bfc/c_api.h"

namespace jax_bfc::bench {

inline const jax_bfc_api& Table() {
  auto* get_api = reinterpret_cast<jax_bfc_get_api_function*>(
      dlsym(RTLD_DEFAULT, JAX_BFC_GET_API_SYMBOL));
  if (get_api == nullptr) {
    throw std::runtime_error("jax_bfc is not loaded in this process");
  }
  const jax_bfc_api* api = get_api(JAX_BFC_API_MAJOR, JAX_BFC_API_MINOR);
  if (api == nullptr) {
    throw std::runtime_error(
        "the imported jax_bfc does not serve the C interface " +
        std::to_string(JAX_BFC_API_MAJOR) + "." +
        std::to_string(JAX_BFC_API_MINOR) + " that this was built against");
  }
  return *api;
}

inline void CheckTable(const jax_bfc_api& api, jax_bfc_status status) {
  if (status != JAX_BFC_OK) [[unlikely]] {
    throw std::runtime_error(api.last_error());
  }
}

}  // namespace jax_bfc::bench

#endif  // JAX_BFC_BENCHMARKS_GPU_C_TABLE_H_
