// What users are to be told and no caller can return: by one function for the
// process, which the bindings set; else on stderr.
#ifndef JAX_BFC_POOL_WARN_H_
#define JAX_BFC_POOL_WARN_H_

#include <new>
#include <string>

namespace jax_bfc {

// Called with no lock of a pool held; throws nothing.
using WarnHook = void (*)(const std::string& text);

// Null for stderr. Thread-safe, without a lock.
void SetWarnHook(WarnHook hook);

namespace internal {
void WarnOf(const std::string& text);
}

// Says the text that `make_text()` returns; where the host has no memory for
// it, nothing. Throws nothing: its caller may hold what must not be lost.
// REQUIRES: no lock of a pool is held.
template <typename MakeText>
void Warn(MakeText&& make_text) noexcept {
  try {
    internal::WarnOf(make_text());
  } catch (const std::bad_alloc&) {
    return;
  }
}

}  // namespace jax_bfc

#endif  // JAX_BFC_POOL_WARN_H_
