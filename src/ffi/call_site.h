// Call sites: one custom call in one compiled program, and the state that XLA
// keeps for it from instantiation to the death of the executable.
#ifndef JAX_BFC_FFI_CALL_SITE_H_
#define JAX_BFC_FFI_CALL_SITE_H_

#include <cstdint>

#include "base/locks.h"
#include "pool/kernel_table.h"
#include "pool/pins.h"
#include "xla/ffi/api/c_api.h"

namespace jax_bfc {

// Guards the tables of this layer; held across a fork.
extern Mutex ffi_mutex;

// Shared by every device and every concurrent execution of its executable.
// XLA runs its deleter on any thread, at exit too; it waits for nothing, and
// takes no lock but a pool's for a moment where there are pins.
struct CallSite {
  explicit CallSite(KernelId kernel_id) : kernel(kernel_id) {
    KernelCallSites(kernel).fetch_add(1, std::memory_order_relaxed);
  }
  ~CallSite() {
    KernelCallSites(kernel).fetch_sub(1, std::memory_order_relaxed);
  }
  CallSite(const CallSite&) = delete;
  CallSite& operator=(const CallSite&) = delete;

  const KernelId kernel;
  Pins pins;
};

// The type of a call site in the XLA behind `api`. Each XLA in the process
// (jaxlib's, a plugin's) has a type registry of its own; the first call for an
// `api` registers the type there. Null on success.
XLA_FFI_Error* RegisterCallSiteType(const XLA_FFI_Api* api,
                                    XLA_FFI_TypeId* type_id);

// The call site of the custom call that runs in `context`; null where it has
// none of ours.
CallSite* FindCallSite(const XLA_FFI_Api* api,
                       XLA_FFI_ExecutionContext* context);

// Gives the custom call that `frame` instantiates a call site of `kernel`.
XLA_FFI_Error* SetCallSite(XLA_FFI_CallFrame* frame, KernelId kernel);

// Destroys the error, if it is one; whether it was.
bool DestroyError(const XLA_FFI_Api* api, XLA_FFI_Error* error);

XLA_FFI_Error* MakeError(const XLA_FFI_Api* api, XLA_FFI_Error_Code code,
                         const char* message);

}  // namespace jax_bfc

#endif  // JAX_BFC_FFI_CALL_SITE_H_
