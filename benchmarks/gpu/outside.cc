// What gpu.py times outside handlers: threads on the C table, and the driver's
// own calls. Each function answers null, or what failed.
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>

#include "gpu/c_table.h"
#include "gpu/cuda_check.h"
#include "gpu/streams.h"
#include "gpu/workload.h"

namespace jax_bfc::bench {
namespace {

const char* Guarded(const std::function<void()>& function) {
  static thread_local std::string message;
  try {
    function();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

// The C table on one stream.
class TableSide {
 public:
  TableSide(const jax_bfc_api& api, cudaStream_t stream) : api_(api) {
    constexpr char kName[] = "gpu_benchmark_threads";
    CheckTable(api_, api_.open_stream(JAX_BFC_CUDA, 0, stream, kName,
                                      sizeof(kName) - 1, &context_));
  }
  void* Allocate(size_t bytes) {
    jax_bfc_allocation allocation;
    CheckTable(api_, api_.allocate(&context_, bytes, 1, &allocation));
    // As ScratchAllocator, a few live at once, the last first.
    if (live_ == kMostLive) [[unlikely]] {
      throw std::runtime_error("more than 4 live");
    }
    ids_[live_++] = allocation.id;
    return allocation.ptr;
  }
  void Free(void* ptr, size_t) {
    CheckTable(api_, api_.free(ptr, ids_[--live_]));
  }

 private:
  static constexpr int kMostLive = 4;

  const jax_bfc_api& api_;
  jax_bfc_context context_{};
  uint64_t ids_[kMostLive];
  int live_ = 0;
};

// A function of the driver that the process has loaded.
template <typename Function>
Function* DriverFunction(const char* name) {
  static void* const library = dlopen("libcuda.so.1", RTLD_NOW);
  if (library == nullptr) throw std::runtime_error(dlerror());
  void* symbol = dlsym(library, name);
  if (symbol == nullptr) {
    throw std::runtime_error(std::string("the driver has no ") + name);
  }
  return reinterpret_cast<Function*>(symbol);
}

void CheckDriver(CUresult result, const char* name) {
  if (result == CUDA_SUCCESS) return;
  const char* text = nullptr;
  DriverFunction<decltype(cuGetErrorName)>("cuGetErrorName")(result, &text);
  throw std::runtime_error(std::string(name) + " answered " +
                           (text != nullptr ? text : "an unknown error") +
                           " (" + std::to_string(result) + ")");
}

// Looked up before the clock is read.
#define DRIVER_FUNCTION(name) \
  auto* const name##_function = DriverFunction<decltype(name)>(#name)
#define CALL_DRIVER(name, ...) CheckDriver(name##_function(__VA_ARGS__), #name)

double TimeDriverGrowth(size_t bytes) {
  DRIVER_FUNCTION(cuMemAddressReserve);
  DRIVER_FUNCTION(cuMemAddressFree);
  DRIVER_FUNCTION(cuMemCreate);
  DRIVER_FUNCTION(cuMemMap);
  DRIVER_FUNCTION(cuMemSetAccess);
  DRIVER_FUNCTION(cuMemUnmap);
  DRIVER_FUNCTION(cuMemRelease);
  CHECK_CUDA(cudaSetDevice(0));
  CHECK_CUDA(cudaFree(nullptr));  // makes the context current

  CUmemAllocationProp properties = {};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  properties.location.id = 0;
  CUmemAccessDesc access = {};
  access.location = properties.location;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  CUdeviceptr address = 0;
  CALL_DRIVER(cuMemAddressReserve, &address, bytes, 0, 0, 0);

  const uint64_t begin = NowNs();
  CUmemGenericAllocationHandle handle;
  CALL_DRIVER(cuMemCreate, &handle, bytes, &properties, 0);
  CALL_DRIVER(cuMemMap, address, bytes, 0, handle, 0);
  CALL_DRIVER(cuMemSetAccess, address, bytes, &access, 1);
  const uint64_t end = NowNs();

  CALL_DRIVER(cuMemUnmap, address, bytes);
  CALL_DRIVER(cuMemRelease, handle);
  CALL_DRIVER(cuMemAddressFree, address, bytes);
  return static_cast<double>(end - begin);
}

}  // namespace
}  // namespace jax_bfc::bench

// Wall time of `pairs` pairs on each of `threads` threads, per pair and thread.
extern "C" const char* gpu_threads(const char* workload, int threads,
                                   int64_t pairs, double* wall_ns) {
  using namespace jax_bfc::bench;
  return Guarded([&] {
    CHECK_CUDA(cudaSetDevice(0));
    const auto& streams = Streams(threads);
    const jax_bfc_api& api = Table();
    *wall_ns =
        TimeThreads(threads, WorkloadNamed(workload), pairs, [&](int thread) {
          CHECK_CUDA(cudaSetDevice(0));
          return TableSide(api, streams[thread]);
        });
  });
}

// Creating, mapping and making accessible `bytes` bytes.
extern "C" const char* gpu_driver_growth(int64_t bytes, double* ns) {
  using namespace jax_bfc::bench;
  return Guarded([&] { *ns = TimeDriverGrowth(static_cast<size_t>(bytes)); });
}
