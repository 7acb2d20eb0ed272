// A Lane is the part of a pool that one order of execution uses: the host, or
// one CUDA stream. What is freed in it may be handed out again in it at once,
// since what comes later in the same order waits for what came before.
//
// The first lane of a CUDA pool has no order: it serves those who name no
// stream. What is freed there waits until the device is idle, see slot.h.
#ifndef JAX_BFC_POOL_LANE_H_
#define JAX_BFC_POOL_LANE_H_

#include <cstddef>
#include <memory>

#include "base/locks.h"
#include "core/arena.h"

namespace jax_bfc {

struct Lane {
  Mutex mutex{LockRank::kLane};  // guards all of it
  std::unique_ptr<Arena> arena;  // made when first used
  // Of what is held while it is trimmed: in use as far as the arena knows, and
  // nobody's.
  size_t waiting_bytes = 0;
  size_t waiting_chunks = 0;
  size_t recorded_mapped_bytes = 0;  // as of the last event, see events.h

  // REQUIRES: the mutex is held, the arena made.
  void StartWaiting(ChunkId chunk) {
    waiting_bytes += arena->chunk(chunk).bytes;
    ++waiting_chunks;
  }
  void EndWaiting(ChunkId chunk) {
    waiting_bytes -= arena->chunk(chunk).bytes;
    --waiting_chunks;
  }
};

}  // namespace jax_bfc

#endif  // JAX_BFC_POOL_LANE_H_
