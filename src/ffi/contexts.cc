#include "ffi/contexts.h"

#include <atomic>
#include <optional>
#include <string>
#include <string_view>

#include "ffi/call_site.h"
#include "ffi/failure.h"
#include "ffi/targets.h"
#include "xla/ffi/api/c_api.h"

namespace jax_bfc {
namespace {

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
  if (!DestroyError(api, api->XLA_FFI_Stream_Get(&args))) {
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

jax_bfc_status BeginCudaCall(const XLA_FFI_Api* api,
                             XLA_FFI_ExecutionContext* xla_context, int ordinal,
                             cuda::Stream stream, Caller caller,
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
        *context = {pool->index() | kCaptured, caller.kernel, 1, 0};
        CallSite* call_site = FindCallSite(api, xla_context);
        if (call_site != nullptr) SetPins(context, &call_site->pins);
        return JAX_BFC_OK;
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

}  // namespace

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
  if (DestroyError(api, api->XLA_FFI_DeviceOrdinal_Get(&ordinal)) ||
      ordinal.device_ordinal < 0) {
    ordinal.device_ordinal = 0;
  }
  const Caller caller = CallerOfFrame(args->xla_frame);
  cuda::Stream stream = nullptr;
  if (!RunsOnHost(api, xla_context, &stream)) {
    return BeginCudaCall(api, xla_context, ordinal.device_ordinal, stream,
                         caller, context);
  }
  // XLA tells a CPU handler the device's id in the whole job: each process has
  // a range of kMaxHostPools of them, its own devices first.
  *context = {static_cast<uint32_t>(ordinal.device_ordinal) % kMaxHostPools,
              caller.kernel, 1, Pool::kNoStream};
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
    if (status != JAX_BFC_OK) return status;
    if (kind == JAX_BFC_CUDA) {  // the host has no streams
      std::string why;
      const std::optional<uint32_t> found = CudaStreamOf(
          *FindPool(opened.pool), static_cast<uint32_t>(ordinal), stream, &why);
      if (!found) return Fail(JAX_BFC_INTERNAL, "jax_bfc: " + why + ".");
      opened.stream = *found;
    }
    *context = opened;
    return JAX_BFC_OK;
  });
}

}  // namespace jax_bfc
