#include "source/cuda_driver.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdlib>
#include <utility>

#include "base/locks.h"

namespace jax_bfc {
namespace {

constexpr int kOldestDriver = 12000;

constinit Mutex mutex{LockRank::kDriver};
constinit std::atomic<const CudaDriver*> found{nullptr};
bool forked = false;  // from a process that had the driver

// cuGetProcAddress as CUDA 12 has it.
using GetProcAddress = cuda::Result(const char* symbol, void** function,
                                    int version, uint64_t flags, int* status);

// The driver in the library, or null and why not.
const CudaDriver* Load(const char* library, std::string* why) {
  void* handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* error = dlerror();
    *why = std::string("there is no CUDA driver (") +
           (error != nullptr ? error : library) + ")";
    return nullptr;
  }
  const std::string old = std::string("the CUDA driver in ") + library +
                          " is too old; jax_bfc needs CUDA 12.0 or newer";
  auto* get =
      reinterpret_cast<GetProcAddress*>(dlsym(handle, "cuGetProcAddress_v2"));
  if (get == nullptr) {
    *why = old;
    return nullptr;
  }
  static CudaDriver driver;
  const char* missing = nullptr;
#define JAX_BFC_LOAD(member, symbol, version, parameters)                \
  {                                                                      \
    void* function = nullptr;                                            \
    int status = 0;                                                      \
    if (get(symbol, &function, version, 0, &status) != cuda::kSuccess || \
        function == nullptr) {                                           \
      missing = symbol;                                                  \
    }                                                                    \
    driver.member = reinterpret_cast<decltype(driver.member)>(function); \
  }
  JAX_BFC_CUDA_FUNCTIONS(JAX_BFC_LOAD)
#undef JAX_BFC_LOAD
  if (missing != nullptr) {
    *why = old + " (it has no " + missing + ")";
    return nullptr;
  }
  int version = 0;
  driver.DriverGetVersion(&version);
  if (version < kOldestDriver) {
    *why = old + " (it is of " + std::to_string(version / 1000) + "." +
           std::to_string(version % 1000 / 10) + ")";
    return nullptr;
  }
  const cuda::Result result = driver.Init(0);
  if (result != cuda::kSuccess) {
    *why = "the CUDA driver does not start: " + CudaErrorName(driver, result);
    if (result == cuda::kNotInitialized) {
      *why += ". CUDA cannot be used in a process forked from one that used it";
    }
    return nullptr;
  }
  return &driver;
}

}  // namespace

const CudaDriver* FindCudaDriver(std::string* why) {
  if (const CudaDriver* driver = found.load(std::memory_order_acquire)) {
    return driver;
  }
  const Guard lock(mutex);
  if (const CudaDriver* driver = found.load(std::memory_order_acquire)) {
    return driver;
  }
  if (forked) {
    *why =
        "CUDA cannot be used in a process forked from one that used it; start "
        "processes with multiprocessing's 'spawn'";
    return nullptr;
  }
  const char* library = std::getenv("JAX_BFC_LIBCUDA");
  const CudaDriver* driver =
      Load(library != nullptr ? library : "libcuda.so.1", why);
  found.store(driver, std::memory_order_release);
  return driver;
}

void SetCudaDriverForTest(const CudaDriver* driver) {
  const Guard lock(mutex);
  found.store(driver, std::memory_order_release);
}

void LockCudaDriver() { mutex.lock(); }

void UnlockCudaDriver(bool in_child) {
  if (in_child && found.exchange(nullptr) != nullptr) forked = true;
  mutex.unlock();
}

std::string CudaErrorName(const CudaDriver& driver, cuda::Result result) {
  const char* name = nullptr;
  if (driver.GetErrorName(result, &name) != cuda::kSuccess || name == nullptr) {
    name = "CUDA error";
  }
  return std::string(name) + " (" + std::to_string(result) + ")";
}

}  // namespace jax_bfc
