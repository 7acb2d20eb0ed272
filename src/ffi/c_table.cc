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

// Whether handlers called by this XLA run on the host; `stream` is theirs if
// not. A handler has a stream on every other platform, and the XLA of a
// process's CPU client is not that of its plugins, so one question for each is
// enough.
bool RunsOnHost(const XLA_FFI_Api* api, XLA_FFI_ExecutionContext* context,
                cuda::Stream* stream) {
  static std::atomic<const XLA_FFI_Api*> known_host{nullptr};
  if (known_host.load(std::memory_order_relaxed) == api) return true;
  XLA_FFI_Stream_Get_Args args = {XLA_FFI_Stream_Get_Args_STRUCT_SIZE, nullptr,
                                  context, nullptr};
  if (!Failed(api, api->XLA_FFI_Stream_Get(&args))) {
    *stream = args.stream;
    return false;
  }
  known_host.store(api, std::memory_order_relaxed);
  return true;
}

const char* StageName(int stage) {
  constexpr const char* kNames[] = {"instantiate", "prepare", "initialize",
                                    "execute", "record"};
  return stage >= 0 && stage < 5 ? kNames[stage] : "unknown";
}

jax_bfc_status CudaFailure(const CudaDriver& driver, const char* call,
                           cuda::Result result) {
  return Fail(JAX_BFC_INTERNAL, std::string("jax_bfc: ") + call +
                                    " failed with " +
                                    CudaErrorName(driver, result));
}

jax_bfc_status NoSuchDevice(const char* kind, int ordinal, uint32_t count) {
  return Fail(JAX_BFC_INVALID_ARGUMENT,
              std::string("jax_bfc: ") + kind + " device " +
                  std::to_string(ordinal) + "; the valid ones are 0 to " +
                  std::to_string(count - 1) + ".");
}

// The pool of a device, made if need be; null, and a failure, where there is
// none.
Pool* PoolFor(jax_bfc_device_kind kind, int ordinal, jax_bfc_status* status) {
  const bool on_host = kind == JAX_BFC_HOST;
  const uint32_t count = on_host ? kMaxHostPools : kMaxCudaPools;
  if (!on_host && kind != JAX_BFC_CUDA) {
    *status = Fail(JAX_BFC_INVALID_ARGUMENT,
                   "jax_bfc: device kind " + std::to_string(kind) +
                       "; the valid ones are 0 (host) and 1 (CUDA).");
    return nullptr;
  }
  if (ordinal < 0 || ordinal >= static_cast<int>(count)) {
    *status = NoSuchDevice(on_host ? "CPU" : "CUDA", ordinal, count);
    return nullptr;
  }
  const auto index = static_cast<uint32_t>(ordinal);
  std::string why;
  Pool* pool = PoolOfDevice(on_host ? index : CudaPoolIndex(index), &why);
  if (pool == nullptr) {
    *status = Fail(JAX_BFC_FAILED_PRECONDITION, "jax_bfc: " + why + ".");
  }
  return pool;
}

jax_bfc_status BeginCudaCall(int ordinal, cuda::Stream stream, Caller caller,
                             jax_bfc_context* context) {
  return Guarded([&] {
    const auto place = static_cast<uint32_t>(ordinal);
    Pool* pool =
        place < kMaxCudaPools ? FindPool(CudaPoolIndex(place)) : nullptr;
    if (pool == nullptr) [[unlikely]] {
      jax_bfc_status status = JAX_BFC_OK;
      pool = PoolFor(JAX_BFC_CUDA, ordinal, &status);
      if (pool == nullptr) return status;
    }
    std::string why;
    const CudaDriver& driver = *FindCudaDriver(&why);  // the pool has it
    if (caller.may_be_captured) {
      int status = cuda::kCaptureStatusNone;
      const cuda::Result result = driver.StreamIsCapturing(stream, &status);
      if (result != cuda::kSuccess) [[unlikely]] {
        return CudaFailure(driver, "cuStreamIsCapturing", result);
      }
      if (status != cuda::kCaptureStatusNone) [[unlikely]] {
        return Fail(
            JAX_BFC_UNIMPLEMENTED,
            "jax_bfc: kernel '" + KernelName(caller.kernel) +
                "' was captured into a CUDA graph, and this version has "
                "scratch outside of graphs only. Leave the trait "
                "kCmdBufferCompatible off the handler, or run with "
                "XLA_FLAGS=--xla_gpu_enable_command_buffer=");
      }
    }
    uint64_t id = 0;
    const cuda::Result result = driver.StreamGetId(stream, &id);
    if (result != cuda::kSuccess) [[unlikely]] {
      return CudaFailure(driver, "cuStreamGetId", result);
    }
    *context = {pool->index(), caller.kernel, 1, pool->StreamOf(id)};
    return JAX_BFC_OK;
  });
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
  XLA_FFI_DeviceOrdinal_Get_Args ordinal = {
      XLA_FFI_DeviceOrdinal_Get_Args_STRUCT_SIZE, nullptr, xla_context, 0};
  if (Failed(api, api->XLA_FFI_DeviceOrdinal_Get(&ordinal)) ||
      ordinal.device_ordinal < 0) {
    ordinal.device_ordinal = 0;
  }
  const Caller caller = CallerOfFrame(args->xla_frame);
  cuda::Stream stream = nullptr;
  if (!RunsOnHost(api, xla_context, &stream)) {
    return BeginCudaCall(ordinal.device_ordinal, stream, caller, context);
  }
  if (ordinal.device_ordinal >= static_cast<int>(kMaxHostPools)) [[unlikely]] {
    return Guarded([&] {
      return NoSuchDevice("CPU", ordinal.device_ordinal, kMaxHostPools);
    });
  }
  *context = {static_cast<uint32_t>(ordinal.device_ordinal), caller.kernel, 1,
              Pool::kNoStream};
  return JAX_BFC_OK;
}

jax_bfc_status Open(jax_bfc_device_kind kind, int32_t ordinal, const char* name,
                    size_t length, jax_bfc_context* context) {
  return Guarded([&] {
    jax_bfc_status status = JAX_BFC_OK;
    const Pool* pool = PoolFor(kind, ordinal, &status);
    if (pool == nullptr) return status;
    *context = {pool->index(), InternKernel(std::string_view(name, length)), 1,
                Pool::kNoStream};
    return JAX_BFC_OK;
  });
}

jax_bfc_status OpenStream(jax_bfc_device_kind kind, int32_t ordinal,
                          void* stream, const char* name, size_t length,
                          jax_bfc_context* context) {
  return Guarded([&] {
    jax_bfc_context opened;
    const jax_bfc_status status = Open(kind, ordinal, name, length, &opened);
    if (status != JAX_BFC_OK || kind == JAX_BFC_HOST) {
      if (status == JAX_BFC_OK) *context = opened;
      return status;
    }
    std::string why;
    const std::optional<uint32_t> found = CudaStreamOf(
        *FindPool(opened.pool), static_cast<uint32_t>(ordinal), stream, &why);
    if (!found) return Fail(JAX_BFC_INTERNAL, "jax_bfc: " + why + ".");
    opened.stream = *found;
    *context = opened;
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

// Why Allocate could not even ask a pool.
[[gnu::cold]] jax_bfc_status BadAllocate(const jax_bfc_context& context,
                                         size_t bytes, size_t alignment) {
  if (context.kernel >= kMaxKernels || context.pool >= kMaxPools) {
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
    if (pool == nullptr || bytes > kMaxRequest ||
        !IsValidAlignment(alignment) || context->kernel >= kMaxKernels)
        [[unlikely]] {
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
      return BadFree(ptr, id);
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
                              CallSiteBind,
                              OpenStream};

}  // namespace
}  // namespace jax_bfc

const jax_bfc_api* jax_bfc_get_api(uint32_t major, uint32_t minor) {
  return major == JAX_BFC_API_MAJOR && minor <= JAX_BFC_API_MINOR
             ? &jax_bfc::kApi
             : nullptr;
}
