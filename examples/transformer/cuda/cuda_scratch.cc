#include "cuda_scratch.h"

namespace transformer {

Gauge& GaugeOf(Counted source) {
  static Gauge gauges[kCountedSources];
  return gauges[static_cast<int>(source)];
}

void* CudaScratch::AllocateBytes(size_t bytes) {
  void* data = nullptr;
  error_ = async_ ? cudaMallocAsync(&data, bytes, stream_)
                  : cudaMalloc(&data, bytes);
  if (error_ != cudaSuccess) {
    cudaGetLastError();  // reported by error(), not by the next call
    return nullptr;
  }
  allocations_.push_back(data);
  held_.Add(bytes);
  return data;
}

// Errors of kernels come up here too; XLA finds them when it waits for the
// stream.
CudaScratch::~CudaScratch() {
  for (void* data : allocations_) {
    if (async_) {
      cudaFreeAsync(data, stream_);
    } else {
      cudaFree(data);
    }
  }
}

}  // namespace transformer

// `source` is a Counted.
extern "C" uint64_t transformer_peak_bytes(int source) {
  return transformer::GaugeOf(static_cast<transformer::Counted>(source)).peak();
}
extern "C" void transformer_reset_peaks() {
  for (int i = 0; i < transformer::kCountedSources; ++i) {
    transformer::GaugeOf(static_cast<transformer::Counted>(i)).ResetPeak();
  }
}
