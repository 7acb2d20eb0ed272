// Matrix products by cuBLASLt, with the workspace that it works in given by the
// caller, out of scratch.
#ifndef TRANSFORMER_CUDA_MATMUL_H_
#define TRANSFORMER_CUDA_MATMUL_H_

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "xla/ffi/api/ffi.h"

namespace transformer {

enum class MatrixElement { kF32, kBf16, kInt8, kInt32 };

// c [m, n] = a [m, k] b [k, n], all by rows without gaps; with accumulate,
// c += a b. A transposed operand lies in memory as [k, m] or [n, k].
// Operands of f32 or bf16 are summed in f32, those of int8 in int32 exactly, for
// which cuBLASLt wants b transposed and sizes that are multiples of 4.
struct Matmul {
  MatrixElement operands, result;
  int64_t m, n, k;
  bool transpose_a = false, transpose_b = false, accumulate = false;
};

// What is offered to every product: as much as cuBLAS itself takes on Hopper.
inline constexpr size_t kMatmulWorkspaceBytes = 32 << 20;

// Starts the product on the stream.
xla::ffi::Error Run(const Matmul& matmul, const void* a, const void* b, void* c,
                    void* workspace, cudaStream_t stream);

}  // namespace transformer

#endif  // TRANSFORMER_CUDA_MATMUL_H_
