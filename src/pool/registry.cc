#include "pool/registry.h"

#include <pthread.h>

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>

#include "source/host_memory.h"

namespace jax_bfc {
namespace {

struct Registry {
  Budget host_budget{HostTotalBytes() / 10 * 8};
  PoolConfig host_default{.limit_bytes = HostTotalBytes() / 10 * 8,
                          .growth = {},
                          .preallocate = false,
                          .huge_pages = HugePages::kAuto};
  std::map<uint32_t, PoolConfig> host_overrides;
  std::array<std::atomic<Pool*>, kMaxHostPools> host_pools{};
};

// Guards the configuration and the making of pools. Never taken with a pool's
// lock held.
std::mutex registry_mutex;
std::atomic<Registry*> current{nullptr};

// Around a fork the locks are held, so that the child finds whole what they
// guard. The pools' own locks and arenas may be anyhow: the child leaves them
// alone and starts anew.
void BeforeFork() {
  registry_mutex.lock();
  LockKernelTable();
}
void AfterForkInParent() {
  UnlockKernelTable();
  registry_mutex.unlock();
}
void AfterForkInChild() {
  if (const Registry* parents = current.load(std::memory_order_relaxed)) {
    auto* fresh = new Registry;
    fresh->host_default = parents->host_default;
    fresh->host_overrides = parents->host_overrides;
    fresh->host_budget.set_limit_bytes(parents->host_budget.limit_bytes());
    current.store(fresh, std::memory_order_release);
  }
  KeepOnlyThisThreadSlot();
  UnlockKernelTable();
  registry_mutex.unlock();
}

// REQUIRES: registry_mutex is held.
Registry& LockedRegistry() {
  Registry* registry = current.load(std::memory_order_acquire);
  if (registry == nullptr) {
    static const int registered =
        pthread_atfork(BeforeFork, AfterForkInParent, AfterForkInChild);
    static_cast<void>(registered);
    registry = new Registry;
    current.store(registry, std::memory_order_release);
  }
  return *registry;
}

PoolConfig ConfigOf(const Registry& registry, uint32_t ordinal) {
  const auto found = registry.host_overrides.find(ordinal);
  return found != registry.host_overrides.end() ? found->second
                                                : registry.host_default;
}

Pool& MakeHostPool(uint32_t ordinal) {
  const std::lock_guard lock(registry_mutex);
  Registry& registry = LockedRegistry();
  std::atomic<Pool*>& place = registry.host_pools[ordinal];
  if (Pool* made = place.load(std::memory_order_acquire)) return *made;
  auto* pool = new Pool(ordinal, "cpu:" + std::to_string(ordinal),
                        ConfigOf(registry, ordinal), &registry.host_budget, [] {
                          for (Pool* other : AllPools()) other->Trim();
                        });
  place.store(pool, std::memory_order_release);
  return *pool;
}

// The pools that exist of one device or all, each with all of its locks held.
std::vector<std::unique_ptr<Pool::Everything>> LockPools(
    std::optional<uint32_t> ordinal) {
  std::vector<std::unique_ptr<Pool::Everything>> locked;
  for (Pool* pool : AllPools()) {
    if (ordinal && pool != FindPool(*ordinal)) continue;
    locked.push_back(std::make_unique<Pool::Everything>(pool));
  }
  return locked;
}

}  // namespace

Pool* FindPool(uint32_t index) {
  Registry* registry = current.load(std::memory_order_acquire);
  if (registry == nullptr || index >= kMaxHostPools) return nullptr;
  return registry->host_pools[index].load(std::memory_order_acquire);
}

Pool& HostPool(uint32_t ordinal) {
  Pool* pool = FindPool(ordinal);
  return pool != nullptr ? *pool : MakeHostPool(ordinal);
}

std::vector<Pool*> AllPools() {
  std::vector<Pool*> pools;
  for (uint32_t i = 0; i < kMaxHostPools; ++i) {
    if (Pool* pool = FindPool(i)) pools.push_back(pool);
  }
  return pools;
}

PoolConfig HostConfig(uint32_t ordinal) {
  const std::lock_guard lock(registry_mutex);
  return ConfigOf(LockedRegistry(), ordinal);
}

size_t HostBudgetBytes() {
  const std::lock_guard lock(registry_mutex);
  return LockedRegistry().host_budget.limit_bytes();
}

std::optional<std::string> ConfigureHost(std::optional<uint32_t> ordinal,
                                         const PoolConfig& config) {
  const std::lock_guard lock(registry_mutex);
  Registry& registry = LockedRegistry();
  auto pools = LockPools(ordinal);
  size_t mapped = 0;
  size_t kept = 0;
  for (const auto& pool : pools) {
    mapped += pool->MappedBytes();
    kept += pool->MappedAfterTrim();
  }
  if (kept > config.limit_bytes) {
    return "limit_bytes=" + WithCommas(config.limit_bytes) + " is below the " +
           WithCommas(kept) +
           " bytes that scratch in use keeps mapped; it must be at least that "
           "many. Nothing was changed.";
  }
  for (const auto& pool : pools) {
    if (mapped > config.limit_bytes) pool->Trim();
    pool->Apply(config);
  }
  if (ordinal) {
    registry.host_overrides[*ordinal] = config;
  } else {
    registry.host_default = config;
    registry.host_overrides.clear();
    registry.host_budget.set_limit_bytes(config.limit_bytes);
  }
  return std::nullopt;
}

std::optional<std::string> ResetHost(std::optional<uint32_t> ordinal) {
  const std::lock_guard lock(registry_mutex);
  LockedRegistry();
  auto pools = LockPools(ordinal);
  size_t live = 0;
  for (const auto& pool : pools) live += pool->Live();
  if (live > 0) {
    return "jax_bfc.reset() while scratch is in use: " + WithCommas(live) +
           " allocations are not yet freed. Wait for the programs that use "
           "them (jax.block_until_ready), then reset. Nothing was changed.";
  }
  for (const auto& pool : pools) pool->Reset();
  return std::nullopt;
}

}  // namespace jax_bfc
