// How the functions of the C table fail.
#ifndef JAX_BFC_FFI_FAILURE_H_
#define JAX_BFC_FFI_FAILURE_H_

#include <exception>
#include <new>
#include <string>
#include <utility>

#include "jax_bfc/c_api.h"

namespace jax_bfc {

// The text of this thread's last failure. Leaked, one for each thread that
// failed: it must outlive the thread's other destructors.
inline std::string& LastErrorText() {
  static thread_local std::string* const text = new std::string;
  return *text;
}

inline jax_bfc_status Fail(jax_bfc_status status, std::string message) {
  LastErrorText() = std::move(message);
  return status;
}

// Nothing throws across the C table.
template <typename Function>
jax_bfc_status Guarded(Function&& function) noexcept {
  try {
    return function();
  } catch (const std::bad_alloc&) {
    try {
      return Fail(JAX_BFC_RESOURCE_EXHAUSTED,
                  "jax_bfc: the host has no memory for its own records. "
                  "Nothing was changed.");
    } catch (...) {
      return JAX_BFC_RESOURCE_EXHAUSTED;
    }
  } catch (const std::exception& e) {
    try {
      return Fail(JAX_BFC_INTERNAL, std::string("jax_bfc: ") + e.what());
    } catch (...) {
      return JAX_BFC_INTERNAL;
    }
  }
}

}  // namespace jax_bfc

#endif  // JAX_BFC_FFI_FAILURE_H_
