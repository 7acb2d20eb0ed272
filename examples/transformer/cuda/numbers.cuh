// The two kinds of numbers that the kernels take, bf16 and f32: loading and
// storing them 16 bytes at a time, and adding them up over a block.
#ifndef TRANSFORMER_CUDA_NUMBERS_CUH_
#define TRANSFORMER_CUDA_NUMBERS_CUH_

#include <cuda_bf16.h>

#include <cstdint>

namespace transformer {

inline constexpr float kInfinity = __builtin_huge_valf();

// Numbers in 16 bytes, the widest load.
template <typename T>
inline constexpr int kVector = 16 / sizeof(T);

__device__ inline float ToFloat(float x) { return x; }
__device__ inline float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ T FromFloat(float x);
template <>
__device__ inline float FromFloat<float>(float x) {
  return x;
}
template <>
__device__ inline __nv_bfloat16 FromFloat<__nv_bfloat16>(float x) {
  return __float2bfloat16(x);
}

// Loads 16 bytes of numbers of which the first `valid` exist; the others are 0.
// `vectors`: the address is aligned, and all exist or none.
template <typename T>
__device__ inline void LoadFloats(float (&to)[kVector<T>], const T* from,
                                  int64_t valid, bool vectors) {
  if (vectors) {
    uint4 loaded = {0, 0, 0, 0};
    if (valid > 0) loaded = *reinterpret_cast<const uint4*>(from);
    const T* numbers = reinterpret_cast<const T*>(&loaded);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) to[i] = ToFloat(numbers[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      to[i] = i < valid ? ToFloat(from[i]) : 0.0f;
    }
  }
}

// Stores two neighbours, the second only where both of `valid` exist.
// `pairs`: the address is aligned to both, and both exist or none.
template <typename T>
__device__ inline void StorePair(T* to, float first, float second,
                                 int64_t valid, bool pairs) {
  if (pairs) {
    struct alignas(2 * sizeof(T)) Pair {
      T first, second;
    };
    if (valid > 0) {
      *reinterpret_cast<Pair*>(to) = {FromFloat<T>(first),
                                      FromFloat<T>(second)};
    }
  } else {
    if (valid > 0) to[0] = FromFloat<T>(first);
    if (valid > 1) to[1] = FromFloat<T>(second);
  }
}

__device__ inline float WarpSum(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    x += __shfl_xor_sync(~0u, x, lanes);
  }
  return x;
}

__device__ inline float WarpMax(float x) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, lanes));
  }
  return x;
}

// Of all threads of the block, for all of them. kThreads is a multiple of 32.
template <int kThreads>
__device__ float BlockMax(float x) {
  __shared__ float of_warps[kThreads / 32];
  x = WarpMax(x);
  __syncthreads();  // of_warps may still be read from the last time
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
  __syncthreads();
  x = of_warps[0];
#pragma unroll
  for (int i = 1; i < kThreads / 32; ++i) x = fmaxf(x, of_warps[i]);
  return x;
}

template <int kThreads>
__device__ float BlockSum(float x) {
  __shared__ float of_warps[kThreads / 32];
  x = WarpSum(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
  __syncthreads();
  x = of_warps[0];
#pragma unroll
  for (int i = 1; i < kThreads / 32; ++i) x += of_warps[i];
  return x;
}

}  // namespace transformer

#endif  // TRANSFORMER_CUDA_NUMBERS_CUH_
