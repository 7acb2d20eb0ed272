// Who is told when a request does not fit, before it fails: one function for
// the process, which the bindings set. It may free scratch and come back into
// the pools; the request is then tried once more.
#ifndef JAX_BFC_POOL_OOM_HOOK_H_
#define JAX_BFC_POOL_OOM_HOOK_H_

#include "pool/oom_report.h"

namespace jax_bfc {

// Whether there is any use in trying again. Called with no lock held, on the
// thread that asked; throws nothing.
using OomHook = bool (*)(const OomReport& report);

// Null for none. Thread-safe, without a lock: nothing to be held at a fork.
void SetOomHook(OomHook hook);

// Whether RunOomHook would call it: not from inside the hook, where a request
// that does not fit fails at once.
bool HasOomHook();
bool RunOomHook(const OomReport& report);

}  // namespace jax_bfc

#endif  // JAX_BFC_POOL_OOM_HOOK_H_
