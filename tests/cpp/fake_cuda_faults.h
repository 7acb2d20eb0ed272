// Which driver calls of a FakeCuda are to fail, and with what.
//
// Not thread-safe: FakeCuda locks.
#ifndef JAX_BFC_TESTS_CPP_FAKE_CUDA_FAULTS_H_
#define JAX_BFC_TESTS_CPP_FAKE_CUDA_FAULTS_H_

#include <optional>
#include <vector>

#include "source/cuda_driver.h"

namespace jax_bfc::testing {

class FakeCudaFaults {
 public:
  static constexpr int kAnyFunction = -1;

  struct Fault {
    int function;    // by its place in CudaDriver, or kAnyFunction
    int calls_left;  // until it happens; 1: at the next call
    cuda::Result result;
    bool for_ever;
  };

  void Add(const Fault& fault) { faults_.push_back(fault); }
  void Clear() { faults_.clear(); }

  // To be asked at each call: what it is to fail with, if anything. Where
  // several would happen at once, the first that was added does.
  std::optional<cuda::Result> Next(int function) {
    std::optional<cuda::Result> result;
    for (Fault& fault : faults_) {
      if (fault.function != kAnyFunction && fault.function != function) {
        continue;
      }
      if (fault.calls_left > 0) --fault.calls_left;
      if (fault.calls_left == 0 && !result) result = fault.result;
    }
    std::erase_if(faults_, [](const Fault& fault) {
      return fault.calls_left == 0 && !fault.for_ever;
    });
    return result;
  }

 private:
  std::vector<Fault> faults_;
};

}  // namespace jax_bfc::testing

#endif  // JAX_BFC_TESTS_CPP_FAKE_CUDA_FAULTS_H_
