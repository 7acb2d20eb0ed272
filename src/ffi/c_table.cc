#include "ffi/c_table.h"

#include <atomic>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "ffi/call_site.h"
#include "ffi/targets.h"
#include "pool/registry.h"
#include "xla/ffi/api/c_api.h"

namespace jax_bfc {
namespace {

static_assert(JAX_BFC_MAX_ALIGNMENT == kMaxAlignment);
static_assert(JAX_BFC_MIN_ALIGNMENT == kQuantum);

// Leaked, one for each thread that failed: its text must outlive the thread's
// other destructors.
std::string& LastErrorText() {
  static thread_local std::string* const text = new std::string;
  return *text;
}

jax_bfc_status Fail(jax_bfc_status status, std::string message) {
  LastErrorText() = std::move(message);
  return status;
}

// Nothing throws across the C table.
template <typename Function>
jax_bfc_status Guarded(Function&& function) noexcept {
  try {
    return function();
  } catch (const std::exception& e) {
    try {
      return Fail(JAX_BFC_INTERNAL, std::string("jax_bfc: ") + e.what());
    } catch (...) {
      return JAX_BFC_INTERNAL;
    }
  }
}

const char* LastError() { return LastErrorText().c_str(); }

// ---------------------------------------------------------------------------
// Contexts.

// Destroys the error, if it is one; whether it was.
bool Failed(const XLA_FFI_Api* api, XLA_FFI_Error* error) {
  if (error == nullptr) return false;
  XLA_FFI_Error_Destroy_Args args = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE,
                                     nullptr, error};
  api->XLA_FFI_Error_Destroy(&args);
  return true;
}

// Whether handlers called by this XLA run on the host. A handler has a stream
// on every other platform, and the XLA of a process's CPU client is not that of
// its plugins, so one question for each is enough.
bool RunsOnHost(const XLA_FFI_Api* api, XLA_FFI_ExecutionContext* context) {
  static std::atomic<const XLA_FFI_Api*> known_host{nullptr};
  if (known_host.load(std::memory_order_relaxed) == api) return true;
  XLA_FFI_Stream_Get_Args args = {XLA_FFI_Stream_Get_Args_STRUCT_SIZE, nullptr,
                                  context, nullptr};
  if (!Failed(api, api->XLA_FFI_Stream_Get(&args))) return false;
  known_host.store(api, std::memory_order_relaxed);
  return true;
}

const char* StageName(int stage) {
  constexpr const char* kNames[] = {"instantiate", "prepare", "initialize",
                                    "execute", "record"};
  return stage >= 0 && stage < 5 ? kNames[stage] : "unknown";
}

jax_bfc_status BeginCall(const jax_bfc_call_args* args,
                         jax_bfc_context* context) {
  const auto* api = static_cast<const XLA_FFI_Api*>(args->xla_api);
  auto* xla_context = static_cast<XLA_FFI_ExecutionContext*>(args->xla_context);
  const int stage = args->xla_stage;
  if (stage != XLA_FFI_ExecutionStage_EXECUTE) [[unlikely]] {
    return Guarded([&] {
      return Fail(JAX_BFC_FAILED_PRECONDITION,
                  std::string("jax_bfc: scratch lives for one execution and "
                              "was asked for in the ") +
                      StageName(stage) +
                      " stage. Ask for it in the execute stage, or keep a "
                      "buffer of your own.");
    });
  }
  if (!RunsOnHost(api, xla_context)) [[unlikely]] {
    return Guarded([&] {
      return Fail(JAX_BFC_UNIMPLEMENTED,
                  "jax_bfc: this version has scratch for the CPU platform "
                  "only, and the handler was called on another one.");
    });
  }
  XLA_FFI_DeviceOrdinal_Get_Args ordinal = {
      XLA_FFI_DeviceOrdinal_Get_Args_STRUCT_SIZE, nullptr, xla_context, 0};
  if (Failed(api, api->XLA_FFI_DeviceOrdinal_Get(&ordinal)) ||
      ordinal.device_ordinal < 0) {
    ordinal.device_ordinal = 0;
  }
  if (ordinal.device_ordinal >= static_cast<int>(kMaxHostPools)) {
    return Guarded([&] {
      return Fail(JAX_BFC_INVALID_ARGUMENT,
                  "jax_bfc: CPU device " +
                      std::to_string(ordinal.device_ordinal) +
                      "; the valid ones are 0 to " +
                      std::to_string(kMaxHostPools - 1) + ".");
    });
  }
  *context = {static_cast<uint32_t>(ordinal.device_ordinal),
              KernelOfFrame(args->xla_frame), 1, 0};
  return JAX_BFC_OK;
}

jax_bfc_status Open(jax_bfc_device_kind kind, int32_t ordinal, const char* name,
                    size_t length, jax_bfc_context* context) {
  return Guarded([&] {
    if (kind != JAX_BFC_HOST) {
      return Fail(JAX_BFC_UNIMPLEMENTED, "jax_bfc: device kind " +
                                             std::to_string(kind) +
                                             "; this version knows 0 (host).");
    }
    if (ordinal < 0 || ordinal >= static_cast<int32_t>(kMaxHostPools)) {
      return Fail(JAX_BFC_INVALID_ARGUMENT,
                  "jax_bfc: device ordinal " + std::to_string(ordinal) +
                      "; the valid ones are 0 to " +
                      std::to_string(kMaxHostPools - 1) + ".");
    }
    *context = {static_cast<uint32_t>(ordinal),
                InternKernel(std::string_view(name, length)), 1, 0};
    return JAX_BFC_OK;
  });
}

jax_bfc_status SetLabel(jax_bfc_context* context, const char* label,
                        size_t length) {
  return Guarded([&] {
    context->kernel =
        InternLabel(context->kernel, std::string_view(label, length));
    context->calls = 1;  // one of the label's too
    return JAX_BFC_OK;
  });
}

// ---------------------------------------------------------------------------
// Allocate and free.

jax_bfc_status Allocate(jax_bfc_context* context, size_t bytes,
                        size_t alignment, jax_bfc_allocation* allocation) {
  return Guarded([&] {
    if (bytes > kMaxRequest) [[unlikely]] {
      return Fail(JAX_BFC_INVALID_ARGUMENT,
                  "jax_bfc: kernel '" + KernelName(context->kernel) +
                      "' asked for " + WithCommas(bytes) +
                      " bytes of scratch; the valid sizes are 0 to 2^47. Was "
                      "it negative, or did a product overflow?");
    }
    if (!IsValidAlignment(alignment)) [[unlikely]] {
      return Fail(JAX_BFC_INVALID_ARGUMENT,
                  "jax_bfc: kernel '" + KernelName(context->kernel) +
                      "' asked for alignment " + WithCommas(alignment) +
                      "; the valid ones are the powers of two up to " +
                      WithCommas(kMaxAlignment) + ".");
    }
    if (context->pool >= kMaxHostPools || context->kernel >= kMaxKernels)
        [[unlikely]] {
      return Fail(JAX_BFC_INVALID_ARGUMENT,
                  "jax_bfc: a context that neither begin_call nor open "
                  "filled in.");
    }
    std::unique_ptr<OomReport> report;
    const std::optional<Allocation> made =
        HostPool(context->pool)
            .Allocate(context->kernel, bytes, alignment, &report,
                      std::exchange(context->calls, 0) != 0);
    if (!made) [[unlikely]] {
      return Fail(JAX_BFC_RESOURCE_EXHAUSTED, report->Text());
    }
    *allocation = {made->ptr, made->bytes, made->id};
    return JAX_BFC_OK;
  });
}

jax_bfc_status Free(void* ptr, uint64_t id) {
  return Guarded([&] {
    Pool* pool = FindPool(Pool::PoolOf(id));
    if (pool == nullptr || !pool->Free(ptr, id)) [[unlikely]] {
      return Fail(JAX_BFC_INVALID_ARGUMENT,
                  "jax_bfc: free of address " +
                      std::to_string(reinterpret_cast<uintptr_t>(ptr)) +
                      " with id " + std::to_string(id) +
                      ", which is not in use: never allocated here, freed "
                      "before, or allocated before a fork. Nothing was "
                      "changed.");
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
    context->kernel = reinterpret_cast<CallSite*>(id)->kernel;
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
                              CallSiteBind};

}  // namespace
}  // namespace jax_bfc

const jax_bfc_api* jax_bfc_get_api(uint32_t major, uint32_t minor) {
  return major == JAX_BFC_API_MAJOR && minor <= JAX_BFC_API_MINOR
             ? &jax_bfc::kApi
             : nullptr;
}
