// Sampling: of the k largest logits of a row, the smallest set whose probability
// reaches p, and of that a token at random.
#include <cfloat>
#include <cub/block/block_scan.cuh>
#include <cub/device/device_radix_sort.cuh>

#include "launch.h"
#include "numbers.cuh"
#include "sample.h"

namespace transformer {

namespace {

constexpr int kThreads = 256;
constexpr int kScanThreads = 512;

// A key that sorts by row, then from the largest logit to the smallest. The
// sort is stable: of equal ones the smallest token comes first.
__device__ uint64_t Key(int64_t row, float logit) {
  // Sorting needs numbers: what is none can't be chosen, if anything else can.
  logit = isnan(logit) ? -FLT_MAX : fminf(fmaxf(logit, -FLT_MAX), FLT_MAX);
  const uint32_t bits = __float_as_uint(logit + 0.0f);  // -0 is 0
  const uint32_t ascending = bits >> 31 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(row) << 32 | static_cast<uint32_t>(~ascending);
}

__device__ float LogitOf(uint64_t key) {
  const uint32_t ascending = ~static_cast<uint32_t>(key);
  return __uint_as_float(ascending >> 31 ? ascending & 0x7fffffffu
                                         : ~ascending);
}

// Bits of a key that differ.
int KeyBits(int64_t rows) {
  int bits = 32;
  while (rows > int64_t{1} << (bits - 32)) ++bits;
  return bits;
}

// Grid: (rows, pieces of a row).
__global__ void __launch_bounds__(kThreads)
    KeysKernel(const __grid_constant__ SampleArgs args) {
  const int64_t row = blockIdx.x;
  const int64_t token = blockIdx.y * int64_t{kThreads} + threadIdx.x;
  if (token >= args.vocabulary) return;
  const int64_t i = row * args.vocabulary + token;
  args.keys[i] = Key(row, args.logits[i] / args.temperature);
  args.order[i] = static_cast<int32_t>(token);
}

// The first of [0, count) for which `found`, which holds from some place on, is
// true; count where it never is.
template <typename Found>
__device__ int64_t FirstWhere(int64_t count, Found found) {
  int64_t begin = 0;
  while (begin < count) {
    const int64_t middle = begin + (count - begin) / 2;
    if (found(middle)) {
      count = middle;
    } else {
      begin = middle + 1;
    }
  }
  return begin;
}

// A block of threads for each row.
__global__ void __launch_bounds__(kScanThreads)
    ChooseKernel(const __grid_constant__ SampleArgs args) {
  using Scan = cub::BlockScan<double, kScanThreads>;
  __shared__ typename Scan::TempStorage storage;
  const int64_t row = blockIdx.x;
  const uint64_t* const keys = args.sorted_keys + row * args.vocabulary;
  double* const sums = args.sums + row * args.vocabulary;
  const float largest = LogitOf(keys[0]);
  double before = 0;
  for (int64_t start = 0; start < args.top_k; start += kScanThreads) {
    const int64_t i = start + threadIdx.x;
    const double weight =
        i < args.top_k ? static_cast<double>(expf(LogitOf(keys[i]) - largest))
                       : 0.0;
    double sum, total;
    Scan(storage).InclusiveSum(weight, sum, total);
    if (i < args.top_k) sums[i] = before + sum;
    before += total;
    __syncthreads();  // of the storage, and of the sums below
  }
  if (threadIdx.x != 0) return;
  // Those before which the sum has not reached p; the first in any case.
  const double most = static_cast<double>(args.top_p) * before;
  const int64_t kept = 1 + FirstWhere(args.top_k - 1, [&](int64_t i) {
                         return sums[i] >= most;
                       });
  const double drawn = args.uniform[row] * sums[kept - 1];
  const int64_t chosen =
      FirstWhere(kept - 1, [&](int64_t i) { return sums[i] > drawn; });
  args.tokens[row] = args.sorted_order[row * args.vocabulary + chosen];
}

}  // namespace

cudaError_t SortBytes(int64_t rows, int64_t count, size_t* bytes) {
  *bytes = 0;
  return cub::DeviceRadixSort::SortPairs(
      nullptr, *bytes, static_cast<const uint64_t*>(nullptr),
      static_cast<uint64_t*>(nullptr), static_cast<const int32_t*>(nullptr),
      static_cast<int32_t*>(nullptr), static_cast<uint32_t>(count), 0,
      KeyBits(rows));
}

cudaError_t Sample(const SampleArgs& args, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(args.rows),
                  static_cast<unsigned>(CeilDiv(args.vocabulary, kThreads)));
  cudaError_t error = Launch(KeysKernel, grid, kThreads, 0, stream, args);
  if (error != cudaSuccess) return error;
  size_t bytes = args.sort_bytes;
  error = cub::DeviceRadixSort::SortPairs(
      args.sort_scratch, bytes, static_cast<const uint64_t*>(args.keys),
      args.sorted_keys, static_cast<const int32_t*>(args.order),
      args.sorted_order, static_cast<uint32_t>(args.rows * args.vocabulary), 0,
      KeyBits(args.rows), stream);
  if (error != cudaSuccess) return error;
  return Launch(ChooseKernel, dim3(static_cast<unsigned>(args.rows)),
                kScanThreads, 0, stream, args);
}

}  // namespace transformer
