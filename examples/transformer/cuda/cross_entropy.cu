// What cross-entropy does with logits: a block of threads for each row.
#include <cuda_bf16.h>

#include "cross_entropy.h"
#include "launch.h"
#include "numbers.cuh"

namespace transformer {

namespace {

constexpr int kThreads = 512;
constexpr int kStep = 4;  // numbers of f32 in 16 bytes

// kVocabulary % 4 == 0 for `vectors`.
__global__ void __launch_bounds__(kThreads)
    LossKernel(const float* __restrict__ logits,
               const int32_t* __restrict__ labels, int64_t vocabulary,
               bool vectors, float* __restrict__ loss,
               float* __restrict__ log_sums) {
  const int64_t row = blockIdx.x;
  logits += row * vocabulary;
  float largest = -kInfinity, sum = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x * kStep; i < vocabulary; i += kThreads * kStep) {
    float x[kStep];
    LoadFloats(x, logits + i, vocabulary - i, vectors);
    float most = largest;
#pragma unroll
    for (int j = 0; j < kStep; ++j) {
      if (i + j < vocabulary) most = fmaxf(most, x[j]);
    }
    // Where all so far is -infinity, no difference of the two is a number.
    if (most == -kInfinity) continue;
    sum *= expf(largest - most);
    largest = most;
#pragma unroll
    for (int j = 0; j < kStep; ++j) {
      if (i + j < vocabulary) sum += expf(x[j] - largest);
    }
  }
  const float most = BlockMax<kThreads>(largest);
  const float scaled = largest == -kInfinity ? 0 : sum * expf(largest - most);
  const float log_sum = most + logf(BlockSum<kThreads>(scaled));
  if (threadIdx.x == 0) {
    const int32_t label = labels[row];
    const bool exists = label >= 0 && label < vocabulary;
    loss[row] = exists ? log_sum - logits[label] : nanf("");
    log_sums[row] = log_sum;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    GradientKernel(const float* __restrict__ logits,
                   const int32_t* __restrict__ labels,
                   const float* __restrict__ log_sums,
                   const float* __restrict__ d_loss, int64_t vocabulary,
                   bool vectors, T* __restrict__ d_logits) {
  const int64_t row = blockIdx.x;
  logits += row * vocabulary;
  d_logits += row * vocabulary;
  const int32_t label = labels[row];
  const float log_sum = log_sums[row];
  const bool exists = label >= 0 && label < vocabulary;
  const float factor = exists ? d_loss[row] : nanf("");
#pragma unroll 4
  for (int64_t i = threadIdx.x * kStep; i < vocabulary; i += kThreads * kStep) {
    float x[kStep];
    LoadFloats(x, logits + i, vocabulary - i, vectors);
#pragma unroll
    for (int j = 0; j < kStep; ++j) {
      const float probability = expf(x[j] - log_sum);
      x[j] = (probability - (i + j == label ? 1.0f : 0.0f)) * factor;
    }
    StorePair(d_logits + i, x[0], x[1], vocabulary - i, vectors);
    StorePair(d_logits + i + 2, x[2], x[3], vocabulary - i - 2, vectors);
  }
}

// A thread for each kStep numbers.
__global__ void __launch_bounds__(kThreads)
    RoundKernel(const float* __restrict__ from, int64_t count, bool vectors,
                __nv_bfloat16* __restrict__ to) {
  const int64_t i =
      (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kStep;
  if (i >= count) return;
  float x[kStep];
  LoadFloats(x, from + i, count - i, vectors);
  StorePair(to + i, x[0], x[1], count - i, vectors);
  StorePair(to + i + 2, x[2], x[3], count - i - 2, vectors);
}

}  // namespace

cudaError_t LossOfLogits(const float* logits, const int32_t* labels,
                         int64_t rows, int64_t vocabulary, float* loss,
                         float* log_sum, cudaStream_t stream) {
  return Launch(LossKernel, dim3(static_cast<unsigned>(rows)), kThreads, 0,
                stream, logits, labels, vocabulary, vocabulary % kStep == 0,
                loss, log_sum);
}

cudaError_t GradientOfLogits(const float* logits, const int32_t* labels,
                             const float* log_sum, const float* d_loss,
                             int64_t rows, int64_t vocabulary, Element element,
                             void* d_logits, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(rows));
  const bool vectors = vocabulary % kStep == 0;
  if (element == Element::kBf16) {
    return Launch(GradientKernel<__nv_bfloat16>, grid, kThreads, 0, stream,
                  logits, labels, log_sum, d_loss, vocabulary, vectors,
                  static_cast<__nv_bfloat16*>(d_logits));
  }
  return Launch(GradientKernel<float>, grid, kThreads, 0, stream, logits,
                labels, log_sum, d_loss, vocabulary, vectors,
                static_cast<float*>(d_logits));
}

cudaError_t RoundToBf16(const float* from, int64_t count, void* to,
                        cudaStream_t stream) {
  const int64_t blocks = CeilDiv(count, kThreads * kStep);
  return Launch(RoundKernel, dim3(static_cast<unsigned>(blocks)), kThreads, 0,
                stream, from, count, count % kStep == 0,
                static_cast<__nv_bfloat16*>(to));
}

}  // namespace transformer
