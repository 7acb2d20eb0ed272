// The pools of this process, by device, and their configuration.
//
// Pools are made when first used and never destroyed, so that every entry is
// safe during and after the end of the interpreter. A forked child starts with
// no pools: what the parent had handed out is not the child's to free, and its
// own first use makes a fresh pool with the same configuration. CUDA does not
// survive a fork; there a child's first use is refused.
#ifndef JAX_BFC_POOL_REGISTRY_H_
#define JAX_BFC_POOL_REGISTRY_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "pool/pool.h"
#include "source/cuda.h"

namespace jax_bfc {

// Pools have an index each: those of CPU devices, then those of CUDA devices.
// As many CPU devices as XLA makes for one process.
inline constexpr uint32_t kMaxHostPools = 2048;
inline constexpr uint32_t kMaxCudaPools = 64;
inline constexpr uint32_t kMaxPools = kMaxHostPools + kMaxCudaPools;
static_assert(kMaxPools <= 1u << AllocationId::kPoolBits);

constexpr uint32_t CudaPoolIndex(uint32_t ordinal) {
  return kMaxHostPools + ordinal;
}
constexpr bool IsCudaPool(uint32_t index) { return index >= kMaxHostPools; }

// The pool of the CPU device with this ordinal.
// REQUIRES: ordinal < kMaxHostPools.
Pool& HostPool(uint32_t ordinal);

// The pool of the CUDA device with this ordinal; null, and why not, where there
// is none.
// REQUIRES: ordinal < kMaxCudaPools.
Pool* CudaPool(uint32_t ordinal, std::string* why);

// Either.
Pool* PoolOfDevice(uint32_t index, std::string* why);

namespace internal {
extern constinit std::array<std::atomic<Pool*>, kMaxPools> pools;
}

// The pool with an index that an allocation id or a context names; null where
// there is none (yet).
inline Pool* FindPool(uint32_t index) {
  return index < kMaxPools
             ? internal::pools[index].load(std::memory_order_acquire)
             : nullptr;
}

// The pools that exist.
std::vector<Pool*> AllPools();

// The CUDA device with this ordinal; null, and why not, where there is none.
CudaDevice* FindCudaDevice(uint32_t ordinal, std::string* why);

// What names the stream in Pool::Allocate, `pool` being the device's; nothing,
// and why not, where the driver does not say whose stream it is. Null is the
// device's default stream.
std::optional<uint32_t> CudaStreamOf(Pool& pool, uint32_t ordinal,
                                     cuda::Stream stream, std::string* why);

// What users configure. A fraction of the device's total memory beats
// `pool.limit_bytes`.
struct DeviceConfig {
  PoolConfig pool;
  std::optional<double> memory_fraction;
};

// What all CPU pools may map together.
size_t HostBudgetBytes();

// The configuration in force for the device with this index; nothing, and why
// not, where its total memory cannot be found out.
std::optional<PoolConfig> ConfigOfDevice(uint32_t index, std::string* why);

// Everything that is configured: for devices that have nothing of their own,
// present and future, and for those that have, by index of the pool. The limit
// for all is also the budget that the CPU devices share.
struct Configuration {
  DeviceConfig all{.pool = {}, .memory_fraction = kDefaultFraction};
  std::map<uint32_t, DeviceConfig> overrides;

  static constexpr double kDefaultFraction = 0.8;
  const DeviceConfig& Of(uint32_t index) const {
    const auto found = overrides.find(index);
    return found != overrides.end() ? found->second : all;
  }
};
Configuration CurrentConfiguration();

// Puts it in force, as a whole. Nothing on success, else why not, and nothing
// has changed.
std::optional<std::string> Configure(Configuration wanted);
// The same for one device, or for all of them with nothing of their own.
std::optional<std::string> Configure(std::optional<uint32_t> index,
                                     const DeviceConfig& config);

// Drops the pool of one device or of all: memory, statistics. Nothing on
// success, else why not, and nothing has changed.
std::optional<std::string> Reset(std::optional<uint32_t> index);

// Records the events of every pool, those that are made later too. Nothing on
// success, else why not: there is one recording at a time.
std::optional<std::string> StartRecording(const Recorder::Options& options);
// What was recorded; nothing where nothing is: a forked child does not record.
std::optional<Recorder::Blocks> StopRecording();

}  // namespace jax_bfc

#endif  // JAX_BFC_POOL_REGISTRY_H_
