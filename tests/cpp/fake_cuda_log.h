// What the parts of a FakeCuda share: the driver's results that it gives, and
// the list of broken rules.
#ifndef JAX_BFC_TESTS_CPP_FAKE_CUDA_LOG_H_
#define JAX_BFC_TESTS_CPP_FAKE_CUDA_LOG_H_

#include <cstdint>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "source/cuda_driver.h"

namespace jax_bfc::testing {

inline constexpr cuda::Result kCudaInvalidValue = 1;
inline constexpr cuda::Result kCudaDeinitialized = 4;
inline constexpr cuda::Result kCudaInvalidDevice = 101;
inline constexpr cuda::Result kCudaInvalidContext = 201;
inline constexpr cuda::Result kCudaInvalidHandle = 400;
inline constexpr cuda::Result kCudaIllegalAddress = 700;
inline constexpr cuda::Result kCudaNotSupported = 801;
inline constexpr cuda::Result kCudaCaptureUnsupported = 900;

// As the driver names it; null where it is none of the above.
inline const char* FakeCudaErrorName(cuda::Result result) {
  static const std::map<cuda::Result, const char*> kErrorNames = {
      {cuda::kSuccess, "CUDA_SUCCESS"},
      {kCudaInvalidValue, "CUDA_ERROR_INVALID_VALUE"},
      {cuda::kOutOfMemory, "CUDA_ERROR_OUT_OF_MEMORY"},
      {cuda::kNotInitialized, "CUDA_ERROR_NOT_INITIALIZED"},
      {kCudaDeinitialized, "CUDA_ERROR_DEINITIALIZED"},
      {kCudaInvalidDevice, "CUDA_ERROR_INVALID_DEVICE"},
      {kCudaInvalidContext, "CUDA_ERROR_INVALID_CONTEXT"},
      {kCudaInvalidHandle, "CUDA_ERROR_INVALID_HANDLE"},
      {kCudaIllegalAddress, "CUDA_ERROR_ILLEGAL_ADDRESS"},
      {kCudaNotSupported, "CUDA_ERROR_NOT_SUPPORTED"},
      {kCudaCaptureUnsupported, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
  };
  const auto found = kErrorNames.find(result);
  return found == kErrorNames.end() ? nullptr : found->second;
}

// The broken rules, in the order in which they were broken.
class FakeCudaLog {
 public:
  // Records "MemMap(0x10000000000, 2097152): <problem>"; returns `result`.
  cuda::Result Broken(cuda::Result result, const char* call, uint64_t address,
                      uint64_t bytes, const std::string& problem) {
    std::ostringstream text;
    text << call << "(0x" << std::hex << address << std::dec << ", " << bytes
         << "): " << problem;
    texts.push_back(text.str());
    return result;
  }
  cuda::Result Broken(cuda::Result result, const char* call,
                      const std::string& problem) {
    texts.push_back(std::string(call) + ": " + problem);
    return result;
  }

  std::vector<std::string> texts;
};

}  // namespace jax_bfc::testing

#endif  // JAX_BFC_TESTS_CPP_FAKE_CUDA_LOG_H_
