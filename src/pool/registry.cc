#include "pool/registry.h"

#include <pthread.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "source/host_memory.h"

namespace jax_bfc {
namespace {

// A CUDA device and what its pool may map. Both outlive the pool.
struct CudaState {
  std::unique_ptr<CudaDevice> device;
  std::unique_ptr<Budget> budget;
};

size_t PartOf(size_t total_bytes, double fraction) {
  return std::max<size_t>(
      1, static_cast<size_t>(static_cast<double>(total_bytes) * fraction));
}

struct Registry {
  Configuration configuration;
  Budget host_budget{PartOf(HostTotalBytes(), Configuration::kDefaultFraction)};
  std::array<CudaState, kMaxCudaPools> cuda;
};

// Guards the configuration and the making of pools. Never taken with a pool's
// lock held.
constinit Mutex registry_mutex{LockRank::kRegistry};
std::atomic<Registry*> current{nullptr};

// Around a fork the locks are held, so that the child finds whole what they
// guard. The pools' own locks and arenas may be in any state: the child leaves
// them alone and starts anew.
void BeforeFork() JAX_BFC_UNCHECKED {
  registry_mutex.lock();
  LockCudaDriver();
  LockKernelTable();
}
void AfterFork(bool in_child) JAX_BFC_UNCHECKED {
  UnlockKernelTable();
  UnlockCudaDriver(in_child);
  registry_mutex.unlock();
}
void AfterForkInChild() {
  for (std::atomic<Pool*>& pool : internal::pools) pool.store(nullptr);
  if (const Registry* parents = current.load(std::memory_order_relaxed)) {
    auto* fresh = new Registry;
    fresh->configuration = parents->configuration;
    fresh->host_budget.set_limit_bytes(parents->host_budget.limit_bytes());
    current.store(fresh, std::memory_order_release);
  }
  KeepOnlyThisThreadSlot();
  Recorder::StartAnewInChild();
  AfterFork(/*in_child=*/true);
}

// REQUIRES: registry_mutex is held.
Registry& LockedRegistry() {
  Registry* registry = current.load(std::memory_order_acquire);
  if (registry == nullptr) {
    static const int registered = pthread_atfork(
        BeforeFork, [] { AfterFork(/*in_child=*/false); }, AfterForkInChild);
    static_cast<void>(registered);
    registry = new Registry;
    current.store(registry, std::memory_order_release);
  }
  return *registry;
}

// The functions below are called with registry_mutex held.

CudaDevice* LockedCudaDevice(Registry& registry, uint32_t ordinal,
                             std::string* why) {
  std::unique_ptr<CudaDevice>& device = registry.cuda[ordinal].device;
  if (device == nullptr) {
    device = CudaDevice::Open(static_cast<int>(ordinal), why);
  }
  return device.get();
}

// With the limit of `config` on the device worked out.
std::optional<PoolConfig> Resolve(Registry& registry, uint32_t index,
                                  const DeviceConfig& config,
                                  std::string* why) {
  PoolConfig resolved = config.pool;
  if (!IsCudaPool(index)) {
    if (config.memory_fraction) {
      resolved.limit_bytes = PartOf(HostTotalBytes(), *config.memory_fraction);
    }
    return resolved;
  }
  const CudaDevice* device =
      LockedCudaDevice(registry, index - kMaxHostPools, why);
  if (device == nullptr) return std::nullopt;
  if (config.memory_fraction) {
    resolved.limit_bytes =
        PartOf(device->total_bytes(), *config.memory_fraction);
  }
  if (resolved.cuda_memory == CudaMemoryKind::kVirtual &&
      !device->has_virtual_memory()) {
    *why = "source='cuda_vmm', but CUDA device " +
           std::to_string(device->ordinal()) +
           " has no virtual memory; valid: 'auto', 'cuda'";
    return std::nullopt;
  }
  return resolved;
}

std::unique_ptr<MemorySource> MakeCudaSource(CudaDevice* device,
                                             const PoolConfig& config) {
  if (config.cuda_memory == CudaMemoryKind::kPlain ||
      !device->has_virtual_memory()) {
    return std::make_unique<CudaSource>(device);
  }
  return std::make_unique<CudaVmmSource>(device);
}

Pool& MakeHostPool(uint32_t ordinal) {
  const Guard lock(registry_mutex);
  Registry& registry = LockedRegistry();
  std::atomic<Pool*>& place = internal::pools[ordinal];
  if (Pool* made = place.load(std::memory_order_acquire)) return *made;
  std::string why;
  auto* pool = new Pool(
      ordinal, "cpu:" + std::to_string(ordinal),
      *Resolve(registry, ordinal, registry.configuration.Of(ordinal), &why),
      &registry.host_budget, [] {
        for (Pool* other : AllPools()) {
          if (!IsCudaPool(other->index())) other->Trim();
        }
      });
  place.store(pool, std::memory_order_release);
  return *pool;
}

Pool* MakeCudaPool(uint32_t ordinal, std::string* why) {
  const Guard lock(registry_mutex);
  Registry& registry = LockedRegistry();
  const uint32_t index = CudaPoolIndex(ordinal);
  std::atomic<Pool*>& place = internal::pools[index];
  if (Pool* made = place.load(std::memory_order_acquire)) return made;
  std::optional<PoolConfig> config =
      Resolve(registry, index, registry.configuration.Of(index), why);
  if (!config) return nullptr;
  CudaState& state = registry.cuda[ordinal];
  CudaDevice* device = state.device.get();
  state.budget = std::make_unique<Budget>(config->limit_bytes);
  auto* pool = new Pool(
      index, "cuda:" + std::to_string(ordinal), *config, state.budget.get(),
      [index] { FindPool(index)->Trim(); },
      [device](const PoolConfig& c) { return MakeCudaSource(device, c); });
  place.store(pool, std::memory_order_release);
  return pool;
}

// The pools that exist of one device or all.
std::vector<Pool*> PoolsOf(std::optional<uint32_t> index) {
  if (!index) return AllPools();
  Pool* pool = FindPool(*index);
  return pool == nullptr ? std::vector<Pool*>() : std::vector<Pool*>{pool};
}

// A pool that is about to be changed, with all of its locks held.
struct LockedPool {
  Pool* pool;
  std::unique_ptr<Pool::Everything> all;
  PoolConfig config;  // to be
};

void LockAll(const std::vector<LockedPool>& pools) {
  for (int phase = 0; phase < Pool::Everything::kPhases; ++phase) {
    for (const LockedPool& locked : pools) locked.all->Lock(phase);
  }
}

std::string LimitRefusal(size_t limit_bytes, size_t kept_bytes) {
  return "limit_bytes=" + WithCommas(limit_bytes) + " is below the " +
         WithCommas(kept_bytes) +
         " bytes that scratch in use keeps mapped; it must be at least that "
         "many. Nothing was changed.";
}

}  // namespace

constinit std::array<std::atomic<Pool*>, kMaxPools> internal::pools{};

Pool& HostPool(uint32_t ordinal) {
  Pool* pool = FindPool(ordinal);
  return pool != nullptr ? *pool : MakeHostPool(ordinal);
}

Pool* CudaPool(uint32_t ordinal, std::string* why) {
  Pool* pool = FindPool(CudaPoolIndex(ordinal));
  return pool != nullptr ? pool : MakeCudaPool(ordinal, why);
}

Pool* PoolOfDevice(uint32_t index, std::string* why) {
  return IsCudaPool(index) ? CudaPool(index - kMaxHostPools, why)
                           : &HostPool(index);
}

std::vector<Pool*> AllPools() {
  std::vector<Pool*> pools;
  for (uint32_t i = 0; i < kMaxPools; ++i) {
    if (Pool* pool = FindPool(i)) pools.push_back(pool);
  }
  return pools;
}

CudaDevice* FindCudaDevice(uint32_t ordinal, std::string* why) {
  const Guard lock(registry_mutex);
  return LockedCudaDevice(LockedRegistry(), ordinal, why);
}

std::optional<uint32_t> CudaStreamOf(Pool& pool, uint32_t ordinal,
                                     cuda::Stream stream, std::string* why) {
  const CudaDevice* device = FindCudaDevice(ordinal, why);
  if (device == nullptr) return std::nullopt;
  const CudaScope scope(device->driver(), device->context());
  uint64_t id = 0;
  const cuda::Result result = device->driver().StreamGetId(stream, &id);
  if (result != cuda::kSuccess) {
    *why =
        "cuStreamGetId failed with " + CudaErrorName(device->driver(), result);
    return std::nullopt;
  }
  return pool.StreamOf(id);
}

std::optional<PoolConfig> ConfigOfDevice(uint32_t index, std::string* why) {
  const Guard lock(registry_mutex);
  Registry& registry = LockedRegistry();
  return Resolve(registry, index, registry.configuration.Of(index), why);
}

size_t HostBudgetBytes() {
  const Guard lock(registry_mutex);
  return LockedRegistry().host_budget.limit_bytes();
}

Configuration CurrentConfiguration() {
  const Guard lock(registry_mutex);
  return LockedRegistry().configuration;
}

std::optional<std::string> Configure(std::optional<uint32_t> index,
                                     const DeviceConfig& config) {
  Configuration wanted;
  if (index) {
    wanted = CurrentConfiguration();
    wanted.overrides[*index] = config;
  } else {
    wanted.all = config;
  }
  return Configure(std::move(wanted));
}

std::optional<std::string> Configure(Configuration wanted) {
  const Guard lock(registry_mutex);
  Registry& registry = LockedRegistry();
  std::string why;
  const size_t budget = Resolve(registry, 0, wanted.all, &why)->limit_bytes;
  // All memory that the change takes is taken before anything changes.
  std::vector<LockedPool> pools;
  for (Pool* pool : AllPools()) {
    std::optional<PoolConfig> resolved =
        Resolve(registry, pool->index(), wanted.Of(pool->index()), &why);
    if (!resolved) return why + ". Nothing was changed.";
    if (IsCudaPool(pool->index()) &&
        pool->Stats().arena.mapped_bytes > resolved->limit_bytes) {
      pool->Trim();  // with no lock held, since it waits for the device
    }
    pools.push_back(
        {pool, std::make_unique<Pool::Everything>(pool), *resolved});
  }
  LockAll(pools);
  for (const LockedPool& locked : pools) locked.all->Prepare(locked.config);

  size_t host_mapped = 0;
  size_t host_kept = 0;
  for (const auto& [pool, all, resolved] : pools) {
    const bool on_host = !IsCudaPool(pool->index());
    const size_t kept = on_host ? all->MappedAfterTrim() : all->MappedBytes();
    if (on_host) {
      host_mapped += all->MappedBytes();
      host_kept += kept;
    }
    if (all->ChangesSource() && all->Live() > 0) {
      return "the source of " + pool->device() +
             " cannot change while scratch is in use: " +
             WithCommas(all->Live()) +
             " allocations are not yet freed. Nothing was changed.";
    }
    if (kept > resolved.limit_bytes) {
      return LimitRefusal(resolved.limit_bytes, kept);
    }
  }
  if (host_kept > budget) return LimitRefusal(budget, host_kept);
  for (const auto& [pool, all, resolved] : pools) {
    if (all->ChangesSource() && !all->Reset()) {
      return "the source of " + pool->device() +
             " cannot change, since the device does not answer. Nothing was "
             "changed.";
    }
  }
  for (const auto& [pool, all, resolved] : pools) {
    if (IsCudaPool(pool->index())) {
      registry.cuda[pool->index() - kMaxHostPools].budget->set_limit_bytes(
          resolved.limit_bytes);
    } else if (host_mapped > budget ||
               all->MappedBytes() > resolved.limit_bytes) {
      all->Trim();
    }
    all->Apply();
  }
  registry.configuration = std::move(wanted);
  registry.host_budget.set_limit_bytes(budget);
  return std::nullopt;
}

std::optional<std::string> StartRecording(const Recorder::Options& options) {
  const Guard lock(registry_mutex);
  LockedRegistry();
  if (Recorder::on()) {
    return "a recording runs already, and there is one at a time: end it first";
  }
  Recorder::Get().Start(options);
  for (Pool* pool : AllPools()) pool->StartRecording();
  return std::nullopt;
}

std::optional<Recorder::Blocks> StopRecording() {
  const Guard lock(registry_mutex);
  LockedRegistry();
  if (!Recorder::on()) return std::nullopt;
  for (Pool* pool : AllPools()) pool->StopRecording();
  return Recorder::Get().Stop();
}

std::optional<std::string> Reset(std::optional<uint32_t> index) {
  const Guard lock(registry_mutex);
  LockedRegistry();
  std::vector<LockedPool> pools;
  uint64_t live = 0;
  size_t pinned_bytes = 0;
  for (Pool* pool : PoolsOf(index)) {
    pinned_bytes += pool->Stats().pinned_bytes;
    pools.push_back({pool, std::make_unique<Pool::Everything>(pool), {}});
  }
  LockAll(pools);
  for (const LockedPool& locked : pools) live += locked.all->Live();
  if (live > 0) {
    return "jax_bfc.reset() while scratch is in use: " + WithCommas(live) +
           " allocations are not yet freed. Wait for the programs that use "
           "them (jax.block_until_ready), then reset. " +
           (pinned_bytes == 0 ? std::string()
                              : "CUDA graphs hold " + WithCommas(pinned_bytes) +
                                    " bytes until their executables are gone "
                                    "(jax.clear_caches()). ") +
           "Nothing was changed.";
  }
  for (const LockedPool& locked : pools) {
    if (!locked.all->Reset()) {
      return "jax_bfc.reset(): " + locked.pool->device() +
             " does not answer; its pool was not dropped.";
    }
  }
  return std::nullopt;
}

}  // namespace jax_bfc
