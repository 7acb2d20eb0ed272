#include "ffi/c_table.h"

#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "ffi/call_site.h"
#include "ffi/contexts.h"
#include "ffi/failure.h"
#include "ffi/scratch_hook.h"

namespace jax_bfc {
namespace {

static_assert(JAX_BFC_MAX_ALIGNMENT == kMaxAlignment);
static_assert(JAX_BFC_MIN_ALIGNMENT == kQuantum);

const char* LastError() { return LastErrorText().c_str(); }

jax_bfc_status SetLabel(jax_bfc_context* context, const char* label,
                        size_t length) {
  return Guarded([&] {
    context->kernel =
        InternLabel(context->kernel, std::string_view(label, length));
    context->calls |= 1;  // one of the label's too
    return JAX_BFC_OK;
  });
}

// ---------------------------------------------------------------------------
// Allocate and free.

// A captured call's.
[[gnu::noinline]] jax_bfc_status AllocatePinned(
    jax_bfc_context* context, size_t bytes, size_t alignment,
    jax_bfc_allocation* allocation) {
  Pool* pool = FindPool(PoolIndexOf(*context));
  if (pool == nullptr) {
    return Fail(JAX_BFC_FAILED_PRECONDITION,
                "jax_bfc: a captured call's pool is gone.");
  }
  const uint32_t index = context->calls >> 1;
  const Pool::Request request{context->kernel, bytes, alignment,
                              (context->calls & 1) != 0};
  context->calls = (index + 1) << 1;
  Allocation made;
  std::unique_ptr<OomReport> report;
  Pins* pins = PinsOf(*context);
  if (pins != nullptr ? !pins->Get(*pool, index, request, &made, &report)
                      : !PinForLife(*pool, request, &made, &report)) {
    return Fail(JAX_BFC_RESOURCE_EXHAUSTED,
                report->Text() +
                    " It was asked for while a CUDA graph was captured, where "
                    "nothing can be waited for and its memory is kept.");
  }
  *allocation = {made.ptr, made.bytes, made.id};
  return JAX_BFC_OK;
}

bool IsValid(const jax_bfc_context& context, size_t bytes, size_t alignment) {
  return bytes <= kMaxRequest && IsValidAlignment(alignment) &&
         context.kernel < kMaxKernels &&
         (IsCaptured(context) ||
          StreamRef::Unpack(context.stream).lane <= kStreamLanes);
}

// Why Allocate could not even ask a pool.
[[gnu::cold]] jax_bfc_status BadAllocate(const jax_bfc_context& context,
                                         size_t bytes, size_t alignment) {
  if (context.kernel >= kMaxKernels || PoolIndexOf(context) >= kMaxPools ||
      (!IsCaptured(context) &&
       StreamRef::Unpack(context.stream).lane > kStreamLanes)) {
    return Fail(JAX_BFC_INVALID_ARGUMENT,
                "jax_bfc: a context that neither begin_call nor open "
                "filled in.");
  }
  const std::string who =
      "jax_bfc: kernel '" + KernelName(context.kernel) + "' asked for ";
  if (bytes > kMaxRequest) {
    return Fail(JAX_BFC_INVALID_ARGUMENT,
                who + WithCommas(bytes) +
                    " bytes of scratch; the valid sizes are 0 to 2^47. Was it "
                    "negative, or did a product overflow?");
  }
  if (!IsValidAlignment(alignment)) {
    return Fail(JAX_BFC_INVALID_ARGUMENT,
                who + "alignment " + WithCommas(alignment) +
                    "; the valid ones are the powers of two up to " +
                    WithCommas(kMaxAlignment) + ".");
  }
  std::string why = "its pool is gone";
  PoolOfDevice(context.pool, &why);  // made in another process: after a fork
  return Fail(JAX_BFC_FAILED_PRECONDITION, who + "scratch, but " + why + ".");
}

jax_bfc_status Allocate(jax_bfc_context* context, size_t bytes,
                        size_t alignment, jax_bfc_allocation* allocation) {
  return Guarded([&] {
    Pool* pool = FindPool(context->pool);
    if (pool == nullptr && context->pool < kMaxHostPools) [[unlikely]] {
      pool = &HostPool(context->pool);
    }
    if (pool == nullptr || !IsValid(*context, bytes, alignment)) [[unlikely]] {
      if (IsValid(*context, bytes, alignment) && IsCaptured(*context)) {
        return AllocatePinned(context, bytes, alignment, allocation);
      }
      return BadAllocate(*context, bytes, alignment);
    }
    std::unique_ptr<OomReport> report;
    Allocation made;
    if (!pool->Allocate(
            {context->kernel, bytes, alignment,
             std::exchange(context->calls, 0) != 0, context->stream},
            &made, &report)) [[unlikely]] {
      return Fail(JAX_BFC_RESOURCE_EXHAUSTED, report->Text());
    }
    *allocation = {made.ptr, made.bytes, made.id};
    if (const ScratchHook* hook = TheScratchHook()) [[unlikely]] {
      hook->allocated(context->kernel, bytes, made.id);
    }
    return JAX_BFC_OK;
  });
}

[[gnu::cold]] jax_bfc_status BadFree(const void* ptr, uint64_t id) {
  return Fail(JAX_BFC_INVALID_ARGUMENT,
              "jax_bfc: free of address " +
                  std::to_string(reinterpret_cast<uintptr_t>(ptr)) +
                  " with id " + std::to_string(id) +
                  ", which is not in use: never allocated here, freed before, "
                  "or allocated before a fork. Nothing was changed.");
}

jax_bfc_status Free(void* ptr, uint64_t id) {
  return Guarded([&] {
    Pool* pool = FindPool(Pool::PoolOf(id));
    if (pool == nullptr || !pool->Free(ptr, id)) [[unlikely]] {
      // What a graph holds is freed with its executable.
      if (id == PinnedId(Pool::PoolOf(id))) return JAX_BFC_OK;
      return BadFree(ptr, id);
    }
    if (const ScratchHook* hook = TheScratchHook()) [[unlikely]] {
      hook->freed(id);
    }
    return JAX_BFC_OK;
  });
}

// ---------------------------------------------------------------------------
// Call sites of handlers with state of their own. The id is the address.

jax_bfc_status CallSiteCreate(const char* name, size_t length, uint64_t* id) {
  return Guarded([&] {
    *id = reinterpret_cast<uintptr_t>(
        new CallSite(InternKernel(std::string_view(name, length))));
    return JAX_BFC_OK;
  });
}

void CallSiteDestroy(uint64_t id) { delete reinterpret_cast<CallSite*>(id); }

jax_bfc_status CallSiteBind(uint64_t id, jax_bfc_context* context) {
  return Guarded([&] {
    if (id == 0) {
      return Fail(JAX_BFC_INVALID_ARGUMENT,
                  "jax_bfc: Bind() to a call site that was made before "
                  "jax_bfc was imported.");
    }
    auto* call_site = reinterpret_cast<CallSite*>(id);
    context->kernel = call_site->kernel;
    if (IsCaptured(*context)) SetPins(context, &call_site->pins);
    return JAX_BFC_OK;
  });
}

constexpr jax_bfc_api kApi = {sizeof(jax_bfc_api),
                              JAX_BFC_API_MAJOR,
                              JAX_BFC_API_MINOR,
                              JAX_BFC_VERSION,
                              LastError,
                              BeginCall,
                              Open,
                              SetLabel,
                              Allocate,
                              Free,
                              CallSiteCreate,
                              CallSiteDestroy,
                              CallSiteBind,
                              OpenStream};

}  // namespace
}  // namespace jax_bfc

const jax_bfc_api* jax_bfc_get_api(uint32_t major, uint32_t minor) {
  return major == JAX_BFC_API_MAJOR && minor <= JAX_BFC_API_MINOR
             ? &jax_bfc::kApi
             : nullptr;
}
