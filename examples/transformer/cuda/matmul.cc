// cuBLASLt counts in columns, so what it is asked for is c^T = b^T a^T: its first
// operand is our b, and a matrix by rows is its transposed one by columns.
#include "matmul.h"

#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

namespace transformer {

namespace {

namespace ffi = xla::ffi;

cudaDataType_t TypeOf(MatrixElement element) {
  switch (element) {
    case MatrixElement::kF32:
      return CUDA_R_32F;
    case MatrixElement::kBf16:
      return CUDA_R_16BF;
    case MatrixElement::kInt8:
      return CUDA_R_8I;
    case MatrixElement::kInt32:
      return CUDA_R_32I;
  }
  return CUDA_R_32F;
}

std::string Text(const Matmul& matmul) {
  static constexpr const char* kNames[] = {"f32", "bf16", "int8", "int32"};
  return std::string(kNames[static_cast<int>(matmul.operands)]) + " [" +
         std::to_string(matmul.m) + ", " + std::to_string(matmul.k) + "]" +
         (matmul.transpose_a ? "^T" : "") + " x [" + std::to_string(matmul.k) +
         ", " + std::to_string(matmul.n) + "]" +
         (matmul.transpose_b ? "^T" : "") + " to " +
         kNames[static_cast<int>(matmul.result)];
}

// Keeps the first failure, so that calls can be made one after another.
class Status {
 public:
  bool ok() const { return status_ == CUBLAS_STATUS_SUCCESS; }
  void Update(cublasStatus_t status, const char* call) {
    if (!ok() || status == CUBLAS_STATUS_SUCCESS) return;
    status_ = status;
    call_ = call;
  }
  ffi::Error error(const Matmul& matmul) const {
    if (ok()) return ffi::Error::Success();
    return ffi::Error::Internal("transformer: " + std::string(call_) + " for " +
                                Text(matmul) +
                                " failed: " + cublasLtGetStatusString(status_));
  }

 private:
  cublasStatus_t status_ = CUBLAS_STATUS_SUCCESS;
  const char* call_ = "";
};

template <auto kDestroy>
struct Destroy {
  template <typename T>
  void operator()(T* object) const {
    kDestroy(object);
  }
};
using Description = std::unique_ptr<std::remove_pointer_t<cublasLtMatmulDesc_t>,
                                    Destroy<cublasLtMatmulDescDestroy>>;
using Layout = std::unique_ptr<std::remove_pointer_t<cublasLtMatrixLayout_t>,
                               Destroy<cublasLtMatrixLayoutDestroy>>;
using Preference =
    std::unique_ptr<std::remove_pointer_t<cublasLtMatmulPreference_t>,
                    Destroy<cublasLtMatmulPreferenceDestroy>>;

// [rows, columns] by rows, as cuBLASLt sees it.
Layout MakeLayout(MatrixElement element, int64_t rows, int64_t columns,
                  Status& status) {
  cublasLtMatrixLayout_t layout = nullptr;
  status.Update(cublasLtMatrixLayoutCreate(&layout, TypeOf(element), columns,
                                           rows, columns),
                "cublasLtMatrixLayoutCreate");
  return Layout(layout);
}

Description MakeDescription(const Matmul& matmul, Status& status) {
  const bool whole = matmul.operands == MatrixElement::kInt8;
  cublasLtMatmulDesc_t description = nullptr;
  status.Update(
      cublasLtMatmulDescCreate(&description,
                               whole ? CUBLAS_COMPUTE_32I : CUBLAS_COMPUTE_32F,
                               whole ? CUDA_R_32I : CUDA_R_32F),
      "cublasLtMatmulDescCreate");
  if (!status.ok()) return nullptr;
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute,
                       bool transpose) {
    const cublasOperation_t operation = transpose ? CUBLAS_OP_T : CUBLAS_OP_N;
    status.Update(cublasLtMatmulDescSetAttribute(description, attribute,
                                                 &operation, sizeof(operation)),
                  "cublasLtMatmulDescSetAttribute");
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, matmul.transpose_b);
  set(CUBLASLT_MATMUL_DESC_TRANSB, matmul.transpose_a);
  return Description(description);
}

// The alignment of an address that an algorithm may count on, in bytes.
uint32_t Alignment(const void* data) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t lowest = address & (~address + 1);
  return static_cast<uint32_t>(
      std::min<uintptr_t>(lowest == 0 ? 256 : lowest, 256));
}

// Handles and chosen algorithms, for the life of the process. Looking for an
// algorithm takes longer than a small product.
class Cache {
 public:
  static Cache& Get() {
    static Cache& cache = *new Cache;
    return cache;
  }

  cublasLtHandle_t Handle(int device, Status& status) {
    const std::lock_guard lock(mutex_);
    cublasLtHandle_t& handle = handles_[device];
    if (handle == nullptr)
      status.Update(cublasLtCreate(&handle), "cublasLtCreate");
    return handle;
  }

  using Key = std::array<int64_t, 12>;
  template <typename Find>
  cublasLtMatmulAlgo_t Algorithm(const Key& key, const Find& find,
                                 Status& status) {
    {
      const std::lock_guard lock(mutex_);
      if (const auto found = algorithms_.find(key);
          found != algorithms_.end()) {
        return found->second;
      }
    }
    const cublasLtMatmulAlgo_t algorithm = find();
    const std::lock_guard lock(mutex_);
    if (status.ok()) algorithms_.emplace(key, algorithm);
    return algorithm;
  }

 private:
  std::mutex mutex_;
  std::map<int, cublasLtHandle_t> handles_;
  std::map<Key, cublasLtMatmulAlgo_t> algorithms_;
};

}  // namespace

ffi::Error Run(const Matmul& matmul, const void* a, const void* b, void* c,
               void* workspace, cudaStream_t stream) {
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) {
    return ffi::Error::Internal(std::string("transformer: cudaGetDevice: ") +
                                cudaGetErrorString(error));
  }
  Status status;
  const cublasLtHandle_t handle = Cache::Get().Handle(device, status);
  const Description description = MakeDescription(matmul, status);
  const auto layout = [&](MatrixElement element, int64_t rows, int64_t columns,
                          bool transpose) {
    if (transpose) std::swap(rows, columns);
    return MakeLayout(element, rows, columns, status);
  };
  const Layout a_layout =
      layout(matmul.operands, matmul.m, matmul.k, matmul.transpose_a);
  const Layout b_layout =
      layout(matmul.operands, matmul.k, matmul.n, matmul.transpose_b);
  const Layout c_layout = layout(matmul.result, matmul.m, matmul.n, false);
  if (!status.ok()) return status.error(matmul);

  const auto find = [&]() -> cublasLtMatmulAlgo_t {
    cublasLtMatmulPreference_t created = nullptr;
    status.Update(cublasLtMatmulPreferenceCreate(&created),
                  "cublasLtMatmulPreferenceCreate");
    if (!status.ok()) return {};
    const Preference preference(created);
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute,
                         const auto& value) {
      status.Update(cublasLtMatmulPreferenceSetAttribute(created, attribute,
                                                         &value, sizeof(value)),
                    "cublasLtMatmulPreferenceSetAttribute");
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kMatmulWorkspaceBytes);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, Alignment(b));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, Alignment(a));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, Alignment(c));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, Alignment(c));
    cublasLtMatmulHeuristicResult_t result = {};
    int found = 0;
    status.Update(cublasLtMatmulAlgoGetHeuristic(
                      handle, description.get(), b_layout.get(), a_layout.get(),
                      c_layout.get(), c_layout.get(), preference.get(), 1,
                      &result, &found),
                  "cublasLtMatmulAlgoGetHeuristic");
    status.Update(
        found > 0 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED,
        "cublasLtMatmulAlgoGetHeuristic");
    return result.algo;
  };
  const Cache::Key key = {device,
                          static_cast<int64_t>(matmul.operands),
                          static_cast<int64_t>(matmul.result),
                          matmul.m,
                          matmul.n,
                          matmul.k,
                          matmul.transpose_a,
                          matmul.transpose_b,
                          matmul.accumulate,
                          Alignment(a),
                          Alignment(b),
                          Alignment(c)};
  const cublasLtMatmulAlgo_t algorithm =
      Cache::Get().Algorithm(key, find, status);
  if (!status.ok()) return status.error(matmul);

  // Of the type that sums have.
  const float float_one = 1, float_beta = matmul.accumulate ? 1 : 0;
  const int32_t whole_one = 1, whole_beta = matmul.accumulate ? 1 : 0;
  const bool whole = matmul.operands == MatrixElement::kInt8;
  const void* const alpha =
      whole ? static_cast<const void*>(&whole_one) : &float_one;
  const void* const beta =
      whole ? static_cast<const void*>(&whole_beta) : &float_beta;
  status.Update(
      cublasLtMatmul(handle, description.get(), alpha, b, b_layout.get(), a,
                     a_layout.get(), beta, c, c_layout.get(), c, c_layout.get(),
                     &algorithm, workspace, kMatmulWorkspaceBytes, stream),
      "cublasLtMatmul");
  return status.error(matmul);
}

}  // namespace transformer
