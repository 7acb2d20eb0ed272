// A device of 256 MiB, on the driver in memory, and a pool on it.
#ifndef JAX_BFC_TESTS_CPP_FAKE_GPU_H_
#define JAX_BFC_TESTS_CPP_FAKE_GPU_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "check.h"
#include "fake_cuda.h"
#include "pool/registry.h"
#include "pool_fixture.h"
#include "source/cuda.h"

namespace jax_bfc::testing {

class Gpu {
 public:
  struct Options {
    bool virtual_memory = true;
    size_t plain_alignment = 2 * kMiB;
    bool preallocate = false;
  };
  explicit Gpu(size_t limit_bytes) : Gpu(limit_bytes, Options()) {}
  Gpu(size_t limit_bytes, const Options& options)
      : fake_({.devices = 1,
               .total_bytes = 256 * kMiB,
               .virtual_memory = options.virtual_memory,
               .plain_alignment = options.plain_alignment}) {
    SetCudaDriverForTest(FakeCuda::driver());
    std::string why;
    device_ = CudaDevice::Open(0, &why);
    if (device_ == nullptr) Fail(__FILE__, __LINE__, why);
    PoolConfig config;
    config.limit_bytes = limit_bytes;
    config.preallocate = options.preallocate;
    budget_.set_limit_bytes(limit_bytes);
    pool_ = new Pool(
        CudaPoolIndex(0), "cuda:0", config, &budget_,
        [this] {
          if (before_reclaim) before_reclaim();
          pool_->Trim();
        },
        [this, virtual_memory = options.virtual_memory](
            const PoolConfig&) -> std::unique_ptr<MemorySource> {
          if (virtual_memory) {
            return std::make_unique<CudaVmmSource>(device_.get());
          }
          return std::make_unique<CudaSource>(device_.get());
        });
    // Never destroyed, as pools are not.
    static auto* const all = new std::vector<Pool*>;
    all->push_back(pool_);
  }
  ~Gpu() { SetCudaDriverForTest(nullptr); }

  // Everything given back, and no rule of CUDA broken.
  void Finish() {
    fake_.StopFailing();
    CHECK(ResetPool(*pool_));
    fake_.CheckClean();
  }

  // Called where a request did not fit, with no lock held.
  std::function<void()> before_reclaim;

  FakeCuda& fake() { return fake_; }
  Pool& pool() { return *pool_; }

  uint32_t NameOf(cuda::Stream stream) {
    return pool_->StreamOf(fake_.StreamId(stream));
  }
  // In the order of a stream that was named.
  std::optional<Allocation> TryGet(uint32_t name, size_t bytes) {
    std::unique_ptr<OomReport> report;
    Allocation made;
    if (!pool_->Allocate({.kernel = TestKernel(),
                          .bytes = bytes,
                          .alignment = 1,
                          .stream = name},
                         &made, &report)) {
      return std::nullopt;
    }
    return made;
  }
  Allocation GetIn(uint32_t name, size_t bytes) {
    const auto made = TryGet(name, bytes);
    if (!made) Fail(__FILE__, __LINE__, pool_->LastOomReport());
    return *made;
  }
  // Work on the stream that touches the block.
  void Use(cuda::Stream stream, const Allocation& a) {
    const auto address = reinterpret_cast<uintptr_t>(a.ptr);
    fake_.CheckNoForeignUser(stream, address, a.bytes);
    fake_.Launch(stream, address, a.bytes);
  }

 private:
  FakeCuda fake_;
  std::unique_ptr<CudaDevice> device_;
  Budget budget_{0};
  Pool* pool_;
};

}  // namespace jax_bfc::testing

#endif  // JAX_BFC_TESTS_CPP_FAKE_GPU_H_
