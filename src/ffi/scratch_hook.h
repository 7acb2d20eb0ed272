// Who is told of each allocation that a handler or Python makes, and of its end:
// two functions for the process, which the bindings set. What a CUDA graph holds
// is not told of.
#ifndef JAX_BFC_FFI_SCRATCH_HOOK_H_
#define JAX_BFC_FFI_SCRATCH_HOOK_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "pool/kernel_table.h"

namespace jax_bfc {

// Called with no lock held, on the thread that allocates or frees, after it has;
// throw nothing.
struct ScratchHook {
  void (*allocated)(KernelId kernel, size_t bytes, uint64_t id);
  void (*freed)(uint64_t id);  // also of what was allocated before it was set
};

namespace internal {
inline constinit std::atomic<const ScratchHook*> scratch_hook{nullptr};
}

inline const ScratchHook* TheScratchHook() {
  return internal::scratch_hook.load(std::memory_order_acquire);
}
// Null for none. The hook must live for ever: a thread may be inside it.
inline void SetScratchHook(const ScratchHook* hook) {
  internal::scratch_hook.store(hook, std::memory_order_release);
}

}  // namespace jax_bfc

#endif  // JAX_BFC_FFI_SCRATCH_HOOK_H_
