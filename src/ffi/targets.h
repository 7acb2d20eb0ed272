// FFI targets registered through jax_bfc: handlers that know whom they serve.
//
// A handler is a plain C function that is not told the name of its target. So
// each registered target gets functions of its own out of a table of template
// instances: one that instantiates a call site, and one that calls the author's
// execute handler after noting, for its thread, whose frame it is. A
// ScratchAllocator that is decoded from that frame is charged to the target.
#ifndef JAX_BFC_FFI_TARGETS_H_
#define JAX_BFC_FFI_TARGETS_H_

#include <optional>
#include <string_view>

#include "pool/kernel_table.h"
#include "xla/ffi/api/c_api.h"

namespace jax_bfc {

inline constexpr int kMaxTargets = 1024;

struct Target {
  XLA_FFI_Handler* instantiate;  // makes a call site
  XLA_FFI_Handler* execute;      // calls the author's
};

// The functions of a target named `name` whose execute handler is `execute`:
// the same ones for the same name and handler. Nothing once kMaxTargets are
// taken: then the author's own serves, as `(unregistered)`.
std::optional<Target> MakeTarget(std::string_view name,
                                 XLA_FFI_Handler* execute);

// Whom a handler serves.
struct Caller {
  KernelId kernel = kUnregistered;
  // Whether XLA may capture its calls into a CUDA graph: unless its traits,
  // which XLA has asked for by then, say no.
  bool may_be_captured = true;
};
// Who `frame` was called for, if this thread is inside a target's execute
// handler with that very frame; else nobody in particular.
Caller CallerOfFrame(const void* frame);

}  // namespace jax_bfc

#endif  // JAX_BFC_FFI_TARGETS_H_
