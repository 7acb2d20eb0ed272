// PyTorch's caching allocator, called from C++ as its own tensors call it.
#include <c10/cuda/CUDACachingAllocator.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdio>
#include <exception>

#include "gpu/cuda_check.h"
#include "gpu/peer.h"

namespace {

namespace torch_allocator = c10::cuda::CUDACachingAllocator;

class Side {
 public:
  explicit Side(cudaStream_t stream) : stream_(stream) {}
  void* Allocate(size_t bytes) {
    return torch_allocator::raw_alloc_with_stream(bytes, stream_);
  }
  void Free(void* ptr, size_t) { torch_allocator::raw_delete(ptr); }

 private:
  cudaStream_t stream_;
};

}  // namespace

int main() {
  try {
    int devices = 0;
    CHECK_CUDA(cudaGetDeviceCount(&devices));
    CHECK_CUDA(cudaSetDevice(0));
    CHECK_CUDA(cudaFree(nullptr));
    torch_allocator::init(devices);
    return jax_bfc::bench::ServePeer(
        [](cudaStream_t stream) { return Side(stream); });
  } catch (const std::exception& error) {
    std::fprintf(stderr, "PyTorch: %s\n", error.what());
    return 1;
  }
}
