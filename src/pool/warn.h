// What users are to be told and no caller can return: by one function for the
// process, which the bindings set; else on stderr.
#ifndef JAX_BFC_POOL_WARN_H_
#define JAX_BFC_POOL_WARN_H_

#include <string>

namespace jax_bfc {

// Called with no lock of a pool held; throws nothing.
using WarnHook = void (*)(const std::string& text);

// Null for stderr. Thread-safe, without a lock.
void SetWarnHook(WarnHook hook);

// REQUIRES: no lock of a pool is held.
void Warn(const std::string& text);

}  // namespace jax_bfc

#endif  // JAX_BFC_POOL_WARN_H_
