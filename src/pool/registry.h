// The pools of this process, by device, and their configuration.
//
// Pools are made when first used and never destroyed, so that every entry is
// safe during and after the end of the interpreter. A forked child starts with
// no pools: what the parent had handed out is not the child's to free, and its
// own first use makes a fresh pool with the same configuration.
#ifndef JAX_BFC_POOL_REGISTRY_H_
#define JAX_BFC_POOL_REGISTRY_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "pool/pool.h"

namespace jax_bfc {

inline constexpr uint32_t kMaxHostPools = 128;

// The pool of the CPU device with this ordinal.
// REQUIRES: ordinal < kMaxHostPools.
Pool& HostPool(uint32_t ordinal);

// The pool with an index that an allocation id or a context names; null where
// there is none (yet).
Pool* FindPool(uint32_t index);

// The pools that exist.
std::vector<Pool*> AllPools();

// The configuration in force for the device.
PoolConfig HostConfig(uint32_t ordinal);
// What all CPU pools may map together.
size_t HostBudgetBytes();

// Sets it for one CPU device, or for all of them, present and future, and then
// the budget too. Nothing on success, else why not, and nothing has changed.
std::optional<std::string> ConfigureHost(std::optional<uint32_t> ordinal,
                                         const PoolConfig& config);

// Drops the pool of one device or of all: memory, statistics. Nothing on
// success, else why not, and nothing has changed.
std::optional<std::string> ResetHost(std::optional<uint32_t> ordinal);

}  // namespace jax_bfc

#endif  // JAX_BFC_POOL_REGISTRY_H_
