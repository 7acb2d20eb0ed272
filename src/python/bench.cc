#include "python/bench.h"

#include <nanobind/stl/string.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/size_class.h"
#include "python/gil.h"
#include "python/pools.h"
#include "source/cuda.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace jax_bfc {
namespace {

constexpr size_t kMiB = size_t{1} << 20;
constexpr size_t kPageBytes = 4096;

struct Block {
  void* ptr;
  uint64_t id;
};

// The device's pool, as a handler uses it.
class FromPool {
 public:
  explicit FromPool(uint32_t index)
      : pool_(PoolOrThrow(index)), kernel_(InternKernel("(bench)")) {
    if (!IsCudaPool(index)) return;
    std::string why;
    const auto stream =
        CudaStreamOf(pool_, index - kMaxHostPools, /*stream=*/nullptr, &why);
    if (!stream) throw std::runtime_error("jax_bfc: " + why);
    stream_ = *stream;
  }
  Block Allocate(size_t bytes) {
    Allocation made;
    if (!pool_.Allocate({.kernel = kernel_,
                         .bytes = bytes,
                         .alignment = kQuantum,
                         .stream = stream_},
                        &made, &report_)) {
      throw std::runtime_error(report_->Text());
    }
    return {made.ptr, made.id};
  }
  void Free(Block block) { pool_.Free(block.ptr, block.id); }

 private:
  Pool& pool_;
  const KernelId kernel_;
  uint32_t stream_ = Pool::kNoStream;
  std::unique_ptr<OomReport> report_;
};

// As handlers do without one: malloc, or cuMemAlloc.
class FromSystem {
 public:
  explicit FromSystem(uint32_t index) {
    if (!IsCudaPool(index)) return;
    std::string why;
    CudaDevice* device = FindCudaDevice(index - kMaxHostPools, &why);
    if (device == nullptr) throw std::runtime_error("jax_bfc: " + why);
    cuda_ = std::make_unique<CudaSource>(device);
  }
  Block Allocate(size_t bytes) {
    const size_t steps =
        cuda_ == nullptr ? bytes : RoundUp(bytes, cuda_->granularity());
    void* ptr = cuda_ == nullptr
                    ? std::malloc(bytes)
                    : reinterpret_cast<void*>(cuda_->Reserve(steps));
    if (ptr == nullptr) {
      throw std::runtime_error("jax_bfc: the system refused " +
                               std::to_string(bytes) + " bytes");
    }
    asm volatile("" : "+r"(ptr));  // or the pair is compiled away
    return {ptr, steps};
  }
  void Free(Block block) {
    if (cuda_ == nullptr) return std::free(block.ptr);
    cuda_->Release(reinterpret_cast<uintptr_t>(block.ptr), block.id);
  }

 private:
  std::unique_ptr<CudaSource> cuda_;
};

template <typename Function>
double NsOf(Function&& function) {
  const auto begin = std::chrono::steady_clock::now();
  function();
  const auto taken = std::chrono::steady_clock::now() - begin;
  return std::chrono::duration<double, std::nano>(taken).count();
}

// ns of a pair of Allocate and Free, the mean of `pairs`.
template <typename Side>
double Run(Side& side, const std::string& workload, size_t pairs) {
  const auto mean = [&](auto&& once) {
    return NsOf([&] {
             for (size_t i = 0; i < pairs; ++i) once(i);
           }) /
           static_cast<double>(pairs);
  };
  if (workload == "one_size") {
    return mean([&](size_t) { side.Free(side.Allocate(kMiB)); });
  }
  if (workload == "four_live") {
    return mean([&](size_t) {
             const Block a = side.Allocate(kMiB / 16);
             const Block b = side.Allocate(kMiB);
             const Block c = side.Allocate(4 * kMiB);
             const Block d = side.Allocate(16 * kMiB);
             side.Free(d);
             side.Free(c);
             side.Free(b);
             side.Free(a);
           }) /
           4;
  }
  if (workload == "churn") {
    // 256 B to 1 MiB, log-uniform; a random one of 256 is replaced.
    std::mt19937_64 random(1);
    std::uniform_real_distribution<double> log_bytes(std::log(256.0),
                                                     std::log(double{kMiB}));
    const auto draw = [&] {
      return static_cast<size_t>(std::exp(log_bytes(random)));
    };
    std::vector<Block> live(256);
    for (Block& block : live) block = side.Allocate(draw());
    std::vector<std::pair<size_t, size_t>> steps(pairs);
    for (auto& [slot, bytes] : steps) {
      slot = random() % live.size();
      bytes = draw();
    }
    const double ns = mean([&](size_t i) {
      side.Free(live[steps[i].first]);
      live[steps[i].first] = side.Allocate(steps[i].second);
    });
    for (const Block& block : live) side.Free(block);
    return ns;
  }
  if (workload == "touch") {
    return mean([&](size_t) {
      const Block block = side.Allocate(64 * kMiB);
      auto* bytes = static_cast<volatile uint8_t*>(block.ptr);
      for (size_t i = 0; i < 64 * kMiB; i += kPageBytes) bytes[i] = 1;
      side.Free(block);
    });
  }
  throw nb::value_error(("no such workload: " + workload).c_str());
}

double Bench(uint32_t index, const std::string& workload, bool from_pool,
             size_t pairs) {
  const GilRelease release;
  if (from_pool) {
    FromPool side(index);
    return Run(side, workload, pairs);
  }
  FromSystem side(index);
  return Run(side, workload, pairs);
}

}  // namespace

void BindBench(nb::module_& m) {
  m.def("bench", &Bench, "index"_a, "workload"_a, "from_pool"_a, "pairs"_a);
}

}  // namespace jax_bfc
