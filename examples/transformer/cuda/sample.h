// Top-k/top-p sampling on the GPU, by CUB's radix sort of all rows at once.
#ifndef TRANSFORMER_CUDA_SAMPLE_H_
#define TRANSFORMER_CUDA_SAMPLE_H_

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace transformer {

struct SampleArgs {
  int64_t rows, vocabulary;
  const float *logits, *uniform;  // [rows, vocabulary], [rows]
  int32_t* tokens;                // [rows]
  float temperature, top_p;
  int64_t top_k;  // from 1 to vocabulary
  // Scratch, all [rows, vocabulary]: keys to sort and sorted ones, tokens that go
  // with them, and the sums of probabilities up to each (in the sorted order).
  uint64_t *keys, *sorted_keys;
  int32_t *order, *sorted_order;
  double* sums;
  void* sort_scratch;
  size_t sort_bytes;
};

// What CUB says that sorting `count` numbers of `rows` rows needs. The current
// device matters.
cudaError_t SortBytes(int64_t rows, int64_t count, size_t* bytes);
cudaError_t Sample(const SampleArgs& args, cudaStream_t stream);

}  // namespace transformer

#endif  // TRANSFORMER_CUDA_SAMPLE_H_
