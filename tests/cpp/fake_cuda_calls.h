// The driver functions of a FakeCuda: which rule each keeps beside those of
// memory and streams, how calls are counted, and how they are made to fail.
//
// Every call takes the one lock, counts, fails if it is told to, and does its
// work. A call from a forked child is a violation.
#ifndef JAX_BFC_TESTS_CPP_FAKE_CUDA_CALLS_H_
#define JAX_BFC_TESTS_CPP_FAKE_CUDA_CALLS_H_

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "check.h"
#include "fake_cuda_faults.h"
#include "fake_cuda_log.h"
#include "fake_cuda_memory.h"
#include "fake_cuda_streams.h"
#include "new_plan.h"
#include "source/cuda_driver.h"

namespace jax_bfc::testing {

class FakeCudaCalls {
 public:
  struct Options {
    int devices = 2;
    size_t total_bytes = size_t{1} << 30;  // of each device
    bool virtual_memory = true;
    int driver_version = 12080;
    // Of what MemAlloc gives: never more than this.
    size_t plain_alignment = size_t{2} << 20;
  };

  FakeCudaCalls(const FakeCudaCalls&) = delete;
  FakeCudaCalls& operator=(const FakeCudaCalls&) = delete;

  // The same for all, and valid for ever: where no fake is left, its functions
  // answer that the driver has shut down.
  static const CudaDriver* driver() {
    static const CudaDriver table = {
#define JAX_BFC_ENTRY(member, ...) \
  .member = &FakeCudaCalls::Call<k##member, &FakeCudaCalls::member>,
        JAX_BFC_CUDA_FUNCTIONS(JAX_BFC_ENTRY)
#undef JAX_BFC_ENTRY
    };
    return &table;
  }
  // The primary context.
  cuda::Context context(int device) { return &context_names_[device]; }

 protected:
  using Result = cuda::Result;
  using Address = cuda::Address;

  enum Function : int {
#define JAX_BFC_NUMBER(member, ...) k##member,
    JAX_BFC_CUDA_FUNCTIONS(JAX_BFC_NUMBER)
#undef JAX_BFC_NUMBER
        kFunctions
  };
  static constexpr const char* kNames[] = {
#define JAX_BFC_NAME(member, ...) #member,
      JAX_BFC_CUDA_FUNCTIONS(JAX_BFC_NAME)
#undef JAX_BFC_NAME
  };
  static constexpr int kDefaultMode = 0;  // global

  struct Entered {
    int device;
    bool by_test;
  };
  struct Thread {
    std::vector<Entered> contexts;
    int mode = kDefaultMode;
    int excused_contexts = 0;
    bool excused_mode = false;
  };
  explicit FakeCudaCalls(const Options& options)
      : options_(options),
        memory_(options.devices, options.total_bytes, options.plain_alignment,
                log_),
        streams_(options.devices, log_),
        context_names_(options.devices),
        previous_(current_.exchange(this)) {}
  ~FakeCudaCalls() { current_ = previous_; }

  template <typename Body>
  auto Locked(Body&& body) const {
    const std::lock_guard lock(mutex_);
    return body();
  }

  static int Index(std::string_view function) {
    if (function.empty()) return FakeCudaFaults::kAnyFunction;
    const auto found = std::find(kNames, kNames + kFunctions, function);
    if (found == kNames + kFunctions) {
      Fail(__FILE__, __LINE__,
           "CudaDriver has no function '" + std::string(function) + "'");
    }
    return static_cast<int>(found - kNames);
  }

  // Thread ids are used again after a thread's end; these numbers are not.
  Thread& ThisThread() {
    static std::atomic<uint64_t> next{1};
    thread_local const uint64_t number = next++;
    return threads_[number];
  }
  // Of the context that is current on this thread; -1: none is.
  int CurrentDevice() {
    const Thread& thread = ThisThread();
    return thread.contexts.empty() ? -1 : thread.contexts.back().device;
  }

  const Options options_;
  mutable std::mutex mutex_;  // of all that follows
  FakeCudaLog log_;
  FakeCudaMemory memory_;
  FakeCudaStreams streams_;
  std::map<uint64_t, Thread> threads_;
  FakeCudaFaults faults_;
  int calls_[kFunctions] = {};
  int all_calls_ = 0;
  int failed_calls_ = 0;
  int barriers_ = 0;

 private:
  // What stands in the table for the function whose work `kBody` does.
  template <Function kFunction, auto kBody, typename... Parameters>
  static Result Call(Parameters... parameters) {
    const NoneRefused none_refused;  // the driver keeps its own records
    FakeCudaCalls* const fake = current_;
    if (!fake) return kCudaDeinitialized;
    const std::lock_guard lock(fake->mutex_);
    if (getpid() != fake->process_) {
      return fake->log_.Broken(cuda::kNotInitialized, kNames[kFunction],
                               "called in a forked child");
    }
    ++fake->all_calls_;
    ++fake->calls_[kFunction];
    if (const std::optional<Result> result = fake->faults_.Next(kFunction)) {
      ++fake->failed_calls_;
      fake->template Excuse<kFunction>(parameters...);
      return *result;
    }
    return (fake->*kBody)(parameters...);
  }

  // The call failed for no fault of the caller: what it would have taken back
  // is no leak from now on.
  template <Function kFunction, typename... Parameters>
  void Excuse(Parameters... parameters) {
    if constexpr (kFunction == kMemRelease) {
      memory_.ExcuseHandle(parameters...);
    } else if constexpr (kFunction == kMemUnmap) {
      memory_.ExcuseMappings(parameters...);
    } else if constexpr (kFunction == kMemAddressFree) {
      memory_.ExcuseRange(parameters...);
    } else if constexpr (kFunction == kMemFree) {
      memory_.ExcusePlain(parameters...);
    } else if constexpr (kFunction == kCtxPopCurrent) {
      ++ThisThread().excused_contexts;
    } else if constexpr (kFunction == kThreadExchangeStreamCaptureMode) {
      Thread& thread = ThisThread();
      if (thread.mode != kDefaultMode) thread.excused_mode = true;
    }
  }

  bool IsDevice(int device) const {
    return device >= 0 && device < options_.devices;
  }

  // kSuccess where the call, which needs a context and would end captures,
  // may go on.
  Result Enter(const char* call) {
    if (CurrentDevice() < 0) {
      return log_.Broken(kCudaInvalidContext, call, "no context is current");
    }
    if (ThisThread().mode != cuda::kCaptureModeRelaxed &&
        streams_.AnyCaptured()) {
      streams_.InvalidateCaptures();
      return log_.Broken(kCudaCaptureUnsupported, call,
                         "not in relaxed mode while a stream is captured; the "
                         "capture is lost");
    }
    return cuda::kSuccess;
  }

  // --- The driver's functions.

  Result Init(unsigned flags) {
    return flags == 0 ? cuda::kSuccess
                      : log_.Broken(kCudaInvalidValue, "Init", "flags");
  }

  Result DriverGetVersion(int* version) {
    *version = options_.driver_version;
    return cuda::kSuccess;
  }

  Result GetErrorName(Result result, const char** name) {
    *name = FakeCudaErrorName(result);
    return *name ? cuda::kSuccess : kCudaInvalidValue;
  }

  Result DeviceGetCount(int* count) {
    *count = options_.devices;
    return cuda::kSuccess;
  }

  Result DeviceGet(cuda::Device* device, int ordinal) {
    if (!IsDevice(ordinal)) return kCudaInvalidDevice;
    *device = ordinal;
    return cuda::kSuccess;
  }

  Result DeviceGetAttribute(int* value, int attribute, cuda::Device device) {
    if (!IsDevice(device)) return kCudaInvalidDevice;
    if (attribute != cuda::kAttributeVirtualMemory) {
      return log_.Broken(
          kCudaInvalidValue, "DeviceGetAttribute",
          "FakeCuda knows no attribute " + std::to_string(attribute));
    }
    *value = options_.virtual_memory;
    return cuda::kSuccess;
  }

  Result DeviceTotalMem(size_t* bytes, cuda::Device device) {
    if (!IsDevice(device)) return kCudaInvalidDevice;
    *bytes = options_.total_bytes;
    return cuda::kSuccess;
  }

  Result DevicePrimaryCtxRetain(cuda::Context* context, cuda::Device device) {
    if (!IsDevice(device)) return kCudaInvalidDevice;
    *context = this->context(device);
    return cuda::kSuccess;
  }

  Result CtxPushCurrent(cuda::Context context) {
    for (int device = 0; device < options_.devices; ++device) {
      if (context != this->context(device)) continue;
      ThisThread().contexts.push_back({device, /*by_test=*/false});
      return cuda::kSuccess;
    }
    return log_.Broken(kCudaInvalidContext, "CtxPushCurrent",
                       context ? "no context" : "null");
  }

  Result CtxPopCurrent(cuda::Context* context) {
    std::vector<Entered>& contexts = ThisThread().contexts;
    if (contexts.empty() || contexts.back().by_test) {
      return log_.Broken(kCudaInvalidContext, "CtxPopCurrent",
                         contexts.empty() ? "no context is current"
                                          : "the context is the caller's");
    }
    if (context) *context = this->context(contexts.back().device);
    contexts.pop_back();
    return cuda::kSuccess;
  }

  Result ThreadExchangeStreamCaptureMode(int* mode) {
    if (*mode < 0 || *mode > cuda::kCaptureModeRelaxed) {
      return log_.Broken(kCudaInvalidValue, "ThreadExchangeStreamCaptureMode",
                         "no mode " + std::to_string(*mode));
    }
    std::swap(*mode, ThisThread().mode);
    return cuda::kSuccess;
  }

  Result StreamGetId(cuda::Stream stream, uint64_t* id) {
    const auto* state = streams_.Find(stream, "StreamGetId", CurrentDevice());
    if (!state) return kCudaInvalidHandle;
    *id = state->id;
    return cuda::kSuccess;
  }

  Result StreamIsCapturing(cuda::Stream stream, int* status) {
    const auto* state =
        streams_.Find(stream, "StreamIsCapturing", CurrentDevice());
    if (!state) return kCudaInvalidHandle;
    *status = !state->capture               ? cuda::kCaptureStatusNone
              : state->capture->invalidated ? kCaptureStatusInvalidated
                                            : kCaptureStatusActive;
    return cuda::kSuccess;
  }

  Result MemGetInfo(size_t* free, size_t* total) {
    const Result result = Enter("MemGetInfo");
    if (result != cuda::kSuccess) return result;
    *free = memory_.FreeBytes(CurrentDevice());
    *total = options_.total_bytes;
    return cuda::kSuccess;
  }

  Result MemGetAllocationGranularity(
      size_t* bytes, const cuda::AllocationProperties* properties, int which) {
    if (!options_.virtual_memory) return kCudaNotSupported;
    if (!memory_.AreValid(*properties) || which < 0 || which > 1) {
      return log_.Broken(kCudaInvalidValue, "MemGetAllocationGranularity",
                         "bad properties or granularity");
    }
    *bytes = FakeCudaMemory::kGranularity;
    return cuda::kSuccess;
  }

  Result MemAddressReserve(Address* address, size_t bytes, size_t alignment,
                           Address, unsigned long long flags) {
    if (!options_.virtual_memory) return kCudaNotSupported;
    return memory_.Reserve(address, bytes, alignment, flags);
  }

  Result MemAddressFree(Address address, size_t bytes) {
    return memory_.AddressFree(address, bytes);
  }

  Result MemCreate(cuda::MemoryHandle* handle, size_t bytes,
                   const cuda::AllocationProperties* properties,
                   unsigned long long flags) {
    if (!options_.virtual_memory) return kCudaNotSupported;
    return memory_.Create(handle, bytes, *properties, flags);
  }

  Result MemRelease(cuda::MemoryHandle handle) {
    return memory_.Release(handle);
  }

  Result MemMap(Address address, size_t bytes, size_t offset,
                cuda::MemoryHandle handle, unsigned long long flags) {
    return memory_.Map(address, bytes, offset, handle, flags);
  }

  Result MemUnmap(Address address, size_t bytes) {
    const Result result = memory_.Unmap(address, bytes);
    if (result == cuda::kSuccess && !streams_.UsersOf(address, bytes).empty()) {
      log_.Broken(kCudaIllegalAddress, "MemUnmap", address, bytes,
                  "a fault: pending work touches it");
    }
    return result;
  }

  Result MemSetAccess(Address address, size_t bytes,
                      const cuda::AccessDescription* descriptions,
                      size_t count) {
    return memory_.SetAccess(address, bytes, descriptions, count);
  }

  Result MemAlloc(Address* address, size_t bytes) {
    const Result result = Enter("MemAlloc");
    if (result != cuda::kSuccess) return result;
    return memory_.Alloc(address, bytes, CurrentDevice());
  }

  Result MemFree(Address address) {
    Result result = Enter("MemFree");
    if (result != cuda::kSuccess || address == 0) return result;
    int device = 0;
    result = memory_.Free(address, &device);
    if (result != cuda::kSuccess) return result;
    streams_.FinishDevice(device);
    ++barriers_;
    return cuda::kSuccess;
  }

  static constexpr int kCaptureStatusActive = 1;
  static constexpr int kCaptureStatusInvalidated = 2;

  inline static std::atomic<FakeCudaCalls*> current_{nullptr};

  const pid_t process_ = getpid();
  std::vector<char> context_names_;  // a context's address is its handle
  FakeCudaCalls* const previous_;
};

}  // namespace jax_bfc::testing

#endif  // JAX_BFC_TESTS_CPP_FAKE_CUDA_CALLS_H_
