// The instructions that C++ has no name for: tensor cores, the loads that feed
// them, and copies to shared memory in the background. Compute capability 8.0.
#ifndef TRANSFORMER_CUDA_PTX_CUH_
#define TRANSFORMER_CUDA_PTX_CUH_

#include <cuda_bf16.h>

#include <cstdint>

namespace transformer {

// An address of shared memory as the instructions want it.
__device__ inline uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Four 8 x 8 matrices of 16-bit numbers. Lane l names the start of row l % 8 of
// matrix l / 8, and gets of each matrix the numbers 2 * (l % 4) and the next of
// row l / 4.
__device__ inline void LoadMatrices(uint32_t (&to)[4], const void* shared) {
  asm volatile(
      "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
      : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
      : "r"(SharedAddress(shared))
      : "memory");
}

// The same of the transposed matrices.
__device__ inline void LoadMatricesTransposed(uint32_t (&to)[4],
                                              const void* shared) {
  asm volatile(
      "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
      : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
      : "r"(SharedAddress(shared))
      : "memory");
}

// c (16 x 8) += a (16 x 16, by rows) b (16 x 8, by columns).
__device__ inline void MultiplyMatrices(float (&c)[4], const uint32_t (&a)[4],
                                        uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two numbers in one register, the first in its low half.
__device__ inline uint32_t PackBf16(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}

// Starts to copy 16 bytes to shared memory; zeros where `valid` is false, and
// then `global` is not read.
__device__ inline void CopyAsync(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(SharedAddress(shared)), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}

// Makes a group of what this thread has started to copy since the last.
__device__ inline void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Until all but the latest kPending groups of this thread are there.
template <int kPending>
__device__ inline void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace transformer

#endif  // TRANSFORMER_CUDA_PTX_CUH_
