// What every byte of a pool is at one moment.
#ifndef JAX_BFC_POOL_SNAPSHOT_H_
#define JAX_BFC_POOL_SNAPSHOT_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "pool/kernel_table.h"

namespace jax_bfc {

enum class ByteState : uint8_t {
  kInUse,     // handed out
  kCached,    // freed, in a front cache
  kWaiting,   // between two owners: freed and the device may still use it, held
              // while it is trimmed, or on its way to a thread
  kFree,      // in a bin
  kUnmapped,  // addresses without memory
};

struct SnapshotChunk {
  uintptr_t address;
  size_t bytes;
  size_t requested_bytes;          // in use only
  std::optional<KernelId> kernel;  // who has it, or had it last if cached
  ByteState state;
  bool starts_region;
  bool pinned = false;  // in use, and held by a CUDA graph, see pins.h
};

struct SnapshotLane {
  uint32_t lane;
  std::optional<uint64_t> stream;     // its id, where the lane is a stream's
  std::vector<SnapshotChunk> chunks;  // region by region, in address order
};

struct PoolSnapshot {
  size_t limit_bytes = 0;
  std::vector<SnapshotLane> lanes;  // those that have been used
};

}  // namespace jax_bfc

#endif  // JAX_BFC_POOL_SNAPSHOT_H_
