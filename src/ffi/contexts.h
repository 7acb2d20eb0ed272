// Contexts of the C interface: whose memory a caller gets, and in whose name.
#ifndef JAX_BFC_FFI_CONTEXTS_H_
#define JAX_BFC_FFI_CONTEXTS_H_

#include <cstddef>
#include <cstdint>

#include "jax_bfc/c_api.h"
#include "pool/pins.h"
#include "pool/registry.h"

namespace jax_bfc {

// A context of a captured call has this bit in its `pool`, and the address of
// the call site's Pins (null where it is not known) in the upper half of `pool`
// and in `stream`. Its `calls` counts the allocations in the upper 31 bits.
constexpr uint32_t kCaptured = 1u << 15;
static_assert(kMaxPools <= kCaptured);

inline void SetPins(jax_bfc_context* context, Pins* pins) {
  const auto address = reinterpret_cast<uintptr_t>(pins);
  context->pool =
      (context->pool & 0xFFFF) | static_cast<uint32_t>(address >> 32) << 16;
  context->stream = static_cast<uint32_t>(address);
}

inline Pins* PinsOf(const jax_bfc_context& context) {
  return reinterpret_cast<Pins*>(uintptr_t{context.pool >> 16} << 32 |
                                 context.stream);
}

inline bool IsCaptured(const jax_bfc_context& context) {
  return (context.pool & kCaptured) != 0;
}
constexpr uint32_t PoolIndexOf(const jax_bfc_context& context) {
  return context.pool & (kCaptured - 1);
}

// Functions of the C table, see include/jax_bfc/c_api.h.
jax_bfc_status BeginCall(const jax_bfc_call_args* args,
                         jax_bfc_context* context);
jax_bfc_status Open(jax_bfc_device_kind kind, int32_t ordinal, const char* name,
                    size_t length, jax_bfc_context* context);
jax_bfc_status OpenStream(jax_bfc_device_kind kind, int32_t ordinal,
                          void* stream, const char* name, size_t length,
                          jax_bfc_context* context);

}  // namespace jax_bfc

#endif  // JAX_BFC_FFI_CONTEXTS_H_
