// RMM's resources: `peer_rmm pool|arena|async BYTES`, BYTES being what the pool
// or the arena takes at once.
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cuda/stream_ref>
#include <exception>
#include <rmm/mr/arena_memory_resource.hpp>
#include <rmm/mr/cuda_async_memory_resource.hpp>
#include <rmm/mr/cuda_memory_resource.hpp>
#include <rmm/mr/pool_memory_resource.hpp>
#include <string_view>

#include "gpu/cuda_check.h"
#include "gpu/peer.h"

namespace {

constexpr size_t kAlignment = 256;  // what RMM gives without being asked

template <typename Resource>
class Side {
 public:
  Side(Resource* resource, cudaStream_t stream)
      : resource_(resource), stream_(stream) {}
  void* Allocate(size_t bytes) {
    return resource_->allocate(stream_, bytes, kAlignment);
  }
  void Free(void* ptr, size_t bytes) {
    resource_->deallocate(stream_, ptr, bytes, kAlignment);
  }

 private:
  Resource* resource_;
  cuda::stream_ref stream_;
};

// Never destroyed: at exit the driver may be gone before it.
template <typename Resource>
int Serve(Resource* resource) {
  return jax_bfc::bench::ServePeer([resource](cudaStream_t stream) {
    return Side<Resource>(resource, stream);
  });
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s pool|arena|async BYTES\n", argv[0]);
    return 2;
  }
  const std::string_view kind = argv[1];
  const size_t bytes = std::strtoull(argv[2], nullptr, 10);
  try {
    CHECK_CUDA(cudaSetDevice(0));
    CHECK_CUDA(cudaFree(nullptr));
    rmm::mr::cuda_memory_resource upstream;
    if (kind == "pool") {
      return Serve(new rmm::mr::pool_memory_resource(upstream, bytes));
    }
    if (kind == "arena") {
      return Serve(new rmm::mr::arena_memory_resource(upstream, bytes));
    }
    if (kind == "async") return Serve(new rmm::mr::cuda_async_memory_resource);
    std::fprintf(stderr, "no resource '%s'; valid: pool, arena, async\n",
                 argv[1]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "RMM's %s: %s\n", argv[1], error.what());
  }
  return 1;
}
