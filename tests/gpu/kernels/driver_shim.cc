// Stands for libcuda.so.1 (JAX_BFC_LIBCUDA): forwards to it, counts the calls of
// each function, and refuses one on demand.
#include <dlfcn.h>

#include <atomic>
#include <cstring>

#include "source/cuda_driver.h"

namespace {

using jax_bfc::CudaDriver;
namespace cuda = jax_bfc::cuda;

std::atomic<long long> total{0};
std::atomic<long long> fail_at{0};  // the call with this number, 0: none
std::atomic<int> fail_with{0};

enum Function : int {
#define JAX_BFC_NUMBER(member, symbol, version, parameters) k##member,
  JAX_BFC_CUDA_FUNCTIONS(JAX_BFC_NUMBER)
#undef JAX_BFC_NUMBER
      kFunctions
};
constexpr const char* kNames[] = {
#define JAX_BFC_NAME(member, symbol, version, parameters) symbol,
    JAX_BFC_CUDA_FUNCTIONS(JAX_BFC_NAME)
#undef JAX_BFC_NAME
};
std::atomic<long long> counts[kFunctions];
std::atomic<long long> done[kFunctions];  // of those, what succeeded
void* real[kFunctions];

template <int function, typename Pointer>
struct Forward;
template <int function, typename... Arguments>
struct Forward<function, cuda::Result (*)(Arguments...)> {
  static cuda::Result Call(Arguments... arguments) {
    ++counts[function];
    if (++total == fail_at) return fail_with;
    const cuda::Result result =
        reinterpret_cast<cuda::Result (*)(Arguments...)>(real[function])(
            arguments...);
    if (result == cuda::kSuccess) ++done[function];
    return result;
  }
};

void* Wrapper(int function) {
  switch (function) {
#define JAX_BFC_WRAP(member, symbol, version, parameters) \
  case k##member:                                         \
    return reinterpret_cast<void*>(                       \
        &Forward<k##member, decltype(CudaDriver::member)>::Call);
    JAX_BFC_CUDA_FUNCTIONS(JAX_BFC_WRAP)
#undef JAX_BFC_WRAP
  }
  return nullptr;
}

}  // namespace

extern "C" {

cuda::Result cuGetProcAddress_v2(const char* symbol, void** function,
                                 int version, uint64_t flags, int* status) {
  using Get = cuda::Result(const char*, void**, int, uint64_t, int*);
  static auto* const get = reinterpret_cast<Get*>(
      dlsym(dlopen("libcuda.so.1", RTLD_NOW), "cuGetProcAddress_v2"));
  if (get == nullptr) return 1;
  for (int i = 0; i < kFunctions; ++i) {
    if (std::strcmp(symbol, kNames[i]) != 0) continue;
    const cuda::Result result = get(symbol, &real[i], version, flags, status);
    *function = Wrapper(i);
    return result;
  }
  return get(symbol, function, version, flags, status);
}

// Calls of one function so far, or of all for "".
long long ShimCalls(const char* symbol) {
  if (*symbol == 0) return total;
  for (int i = 0; i < kFunctions; ++i) {
    if (std::strcmp(symbol, kNames[i]) == 0) return counts[i];
  }
  return -1;
}

// Calls of one function so far that succeeded.
long long ShimDone(const char* symbol) {
  for (int i = 0; i < kFunctions; ++i) {
    if (std::strcmp(symbol, kNames[i]) == 0) return done[i];
  }
  return -1;
}

// The `n`-th call from now on returns `result` and does nothing; 0: none does.
void ShimFail(long long n, int result) {
  fail_with = result;
  fail_at = n == 0 ? 0 : total + n;
}

}  // extern "C"
