// A small number for each thread, its own where there are few threads.
#ifndef JAX_BFC_POOL_THREAD_SLOT_H_
#define JAX_BFC_POOL_THREAD_SLOT_H_

#include <cstdint>

namespace jax_bfc {

inline constexpr uint32_t kSlots = 64;

namespace internal {
inline constexpr uint32_t kNoSlot = ~uint32_t{0};
// Four bytes of static thread-local storage, which glibc keeps in reserve for
// libraries loaded late: reading it is one instruction instead of a call.
extern constinit thread_local uint32_t thread_slot
    __attribute__((tls_model("initial-exec")));
uint32_t AssignThreadSlot();
}  // namespace internal

// Below kSlots. A thread's number is free for another once the thread has
// ended; threads beyond kSlots share.
inline uint32_t ThreadSlot() {
  const uint32_t slot = internal::thread_slot;
  return slot != internal::kNoSlot ? slot : internal::AssignThreadSlot();
}

// In a forked child: only the calling thread is left.
void KeepOnlyThisThreadSlot();

}  // namespace jax_bfc

#endif  // JAX_BFC_POOL_THREAD_SLOT_H_
