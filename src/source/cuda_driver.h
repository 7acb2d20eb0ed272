// The CUDA driver, found at run time: nothing of CUDA is needed to build the
// library or to import it where there is no GPU.
//
// The types and values below are those of the driver's binary interface.
#ifndef JAX_BFC_SOURCE_CUDA_DRIVER_H_
#define JAX_BFC_SOURCE_CUDA_DRIVER_H_

#include <cstddef>
#include <cstdint>
#include <string>

namespace jax_bfc {

namespace cuda {

using Result = int;  // CUresult
inline constexpr Result kSuccess = 0;
inline constexpr Result kOutOfMemory = 2;
inline constexpr Result kNotInitialized = 3;

using Device = int;             // CUdevice
using Context = void*;          // CUcontext
using Stream = void*;           // CUstream
using Address = uint64_t;       // CUdeviceptr
using MemoryHandle = uint64_t;  // CUmemGenericAllocationHandle

inline constexpr int kCaptureModeRelaxed = 2;
inline constexpr int kCaptureStatusNone = 0;
inline constexpr int kAllocationTypePinned = 1;
inline constexpr int kLocationTypeDevice = 1;
inline constexpr int kAccessReadWrite = 3;
inline constexpr int kGranularityMinimum = 0;
inline constexpr int kAttributeVirtualMemory = 102;

struct MemoryLocation {  // CUmemLocation
  int type = kLocationTypeDevice;
  int id = 0;
};
struct AllocationProperties {  // CUmemAllocationProp
  int type = kAllocationTypePinned;
  int requested_handle_types = 0;
  MemoryLocation location;
  void* win32_metadata = nullptr;
  unsigned char compression_type = 0;
  unsigned char gpu_direct_rdma_capable = 0;
  unsigned short usage = 0;
  unsigned char reserved[4] = {};
};
static_assert(sizeof(AllocationProperties) == 32);
struct AccessDescription {  // CUmemAccessDesc
  MemoryLocation location;
  int flags = kAccessReadWrite;
};
static_assert(sizeof(AccessDescription) == 12);

}  // namespace cuda

// The driver's functions that we call, X(name of the member, name in the
// driver, version of CUDA that has this form, parameters).
#define JAX_BFC_CUDA_FUNCTIONS(X)                                             \
  X(Init, "cuInit", 2000, (unsigned flags))                                   \
  X(DriverGetVersion, "cuDriverGetVersion", 2020, (int* version))             \
  X(GetErrorName, "cuGetErrorName", 6000,                                     \
    (cuda::Result result, const char** name))                                 \
  X(DeviceGetCount, "cuDeviceGetCount", 2000, (int* count))                   \
  X(DeviceGet, "cuDeviceGet", 2000, (cuda::Device * device, int ordinal))     \
  X(DeviceGetAttribute, "cuDeviceGetAttribute", 2000,                         \
    (int* value, int attribute, cuda::Device device))                         \
  X(DeviceTotalMem, "cuDeviceTotalMem", 3020,                                 \
    (size_t* bytes, cuda::Device device))                                     \
  X(DevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain", 7000,                 \
    (cuda::Context * context, cuda::Device device))                           \
  X(CtxPushCurrent, "cuCtxPushCurrent", 4000, (cuda::Context context))        \
  X(CtxPopCurrent, "cuCtxPopCurrent", 4000, (cuda::Context * context))        \
  X(ThreadExchangeStreamCaptureMode, "cuThreadExchangeStreamCaptureMode",     \
    10010, (int* mode))                                                       \
  X(StreamGetId, "cuStreamGetId", 12000, (cuda::Stream stream, uint64_t* id)) \
  X(StreamIsCapturing, "cuStreamIsCapturing", 10000,                          \
    (cuda::Stream stream, int* status))                                       \
  X(MemGetInfo, "cuMemGetInfo", 3020, (size_t* free, size_t* total))          \
  X(MemGetAllocationGranularity, "cuMemGetAllocationGranularity", 10020,      \
    (size_t* bytes, const cuda::AllocationProperties* properties, int which)) \
  X(MemAddressReserve, "cuMemAddressReserve", 10020,                          \
    (cuda::Address * address, size_t bytes, size_t alignment,                 \
     cuda::Address hint, unsigned long long flags))                           \
  X(MemAddressFree, "cuMemAddressFree", 10020,                                \
    (cuda::Address address, size_t bytes))                                    \
  X(MemCreate, "cuMemCreate", 10020,                                          \
    (cuda::MemoryHandle * handle, size_t bytes,                               \
     const cuda::AllocationProperties* properties, unsigned long long flags)) \
  X(MemRelease, "cuMemRelease", 10020, (cuda::MemoryHandle handle))           \
  X(MemMap, "cuMemMap", 10020,                                                \
    (cuda::Address address, size_t bytes, size_t offset,                      \
     cuda::MemoryHandle handle, unsigned long long flags))                    \
  X(MemUnmap, "cuMemUnmap", 10020, (cuda::Address address, size_t bytes))     \
  X(MemSetAccess, "cuMemSetAccess", 10020,                                    \
    (cuda::Address address, size_t bytes,                                     \
     const cuda::AccessDescription* descriptions, size_t count))              \
  X(MemAlloc, "cuMemAlloc", 3020, (cuda::Address * address, size_t bytes))    \
  X(MemFree, "cuMemFree", 3020, (cuda::Address address))

struct CudaDriver {
// A name and a list of parameters: neither can stand in parentheses.
// NOLINTBEGIN(bugprone-macro-parentheses)
#define JAX_BFC_DECLARE(member, symbol, version, parameters) \
  cuda::Result(*member) parameters = nullptr;
  JAX_BFC_CUDA_FUNCTIONS(JAX_BFC_DECLARE)
#undef JAX_BFC_DECLARE
  // NOLINTEND(bugprone-macro-parentheses)
};

// The driver of this machine, initialised; null, and why not, where there is
// none, where it is older than CUDA 12.0, and in a process that was forked from
// one that had it. The library is libcuda.so.1, or what JAX_BFC_LIBCUDA names.
const CudaDriver* FindCudaDriver(std::string* why);

// For tests: what FindCudaDriver answers from now on, in this process.
void SetCudaDriverForTest(const CudaDriver* driver);

// Around a fork: CUDA does not survive one, and the child is told so.
void LockCudaDriver();
void UnlockCudaDriver(bool in_child);

// "CUDA_ERROR_OUT_OF_MEMORY (2)".
std::string CudaErrorName(const CudaDriver& driver, cuda::Result result);

// Makes a device's context current for a scope, and lets the thread call what
// it likes while it captures a stream: in the other modes some of our calls
// would end the capture.
class CudaScope {
 public:
  CudaScope(const CudaDriver& driver, cuda::Context context)
      : driver_(driver),
        entered_(driver.CtxPushCurrent(context) == cuda::kSuccess),
        relaxed_(driver.ThreadExchangeStreamCaptureMode(&mode_) ==
                 cuda::kSuccess) {}
  ~CudaScope() {
    if (relaxed_) driver_.ThreadExchangeStreamCaptureMode(&mode_);
    cuda::Context popped;
    if (entered_) driver_.CtxPopCurrent(&popped);
  }
  CudaScope(const CudaScope&) = delete;
  CudaScope& operator=(const CudaScope&) = delete;
  // Whether calls may be made.
  bool entered() const { return entered_ && relaxed_; }

 private:
  const CudaDriver& driver_;
  int mode_ = cuda::kCaptureModeRelaxed;
  const bool entered_;
  const bool relaxed_;
};

}  // namespace jax_bfc

#endif  // JAX_BFC_SOURCE_CUDA_DRIVER_H_
