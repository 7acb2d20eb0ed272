// A Pool gives back: caches to arenas, what was deferred, steps to the system.
#include <utility>
#include <vector>

#include "pool/pool.h"

namespace jax_bfc {

void Pool::Flush(const Lane* only) {
  for (std::atomic<Slot*>& slot_pointer : slots_) {
    Slot* slot = slot_pointer.load(std::memory_order_acquire);
    if (slot == nullptr || (only != nullptr && slot->lane != only)) continue;
    Lane& lane = *slot->lane;
    const std::lock_guard lock(slot->lock);
    const std::lock_guard lane_lock(lane.mutex);
    slot->Evict(slot->cached, [&](ChunkId chunk) { lane.arena->Free(chunk); });
  }
}

void Pool::FreeDeferred(Lane& lane) {
  std::vector<ChunkId> chunks;
  {
    const std::lock_guard lock(lane.mutex);
    chunks.swap(lane.deferred);
  }
  if (chunks.empty()) return;
  const bool idle = source_.WaitIdle();
  const std::lock_guard lock(lane.mutex);
  if (!idle) {
    lane.deferred.insert(lane.deferred.end(), chunks.begin(), chunks.end());
    return;
  }
  for (const ChunkId chunk : chunks) {
    lane.EndWaiting(chunk);
    lane.arena->Free(chunk);
  }
}

size_t Pool::Trim() {
  const std::lock_guard trim_lock(trim_mutex_);
  Flush();
  if (!by_stream_) {
    Lane& lane = lanes_[0];
    const std::lock_guard lock(lane.mutex);
    const size_t bytes = lane.arena == nullptr ? 0 : lane.arena->Trim();
    RecordMapping(lane);
    return bytes;
  }
  FreeDeferred(lanes_[kNoStream]);
  // Held, so that nobody starts to use them while the device finishes what did.
  std::vector<std::pair<Lane*, ChunkId>> held;
  for (Lane& lane : lanes_) {
    const std::lock_guard lock(lane.mutex);
    if (lane.arena == nullptr) continue;
    for (ChunkId chunk = lane.arena->HoldFreeSteps(); chunk != kNoChunk;
         chunk = lane.arena->NextHeld(chunk)) {
      lane.StartWaiting(chunk);
      held.emplace_back(&lane, chunk);
    }
  }
  if (held.empty()) return 0;
  const bool idle = source_.WaitIdle();
  size_t bytes = 0;
  for (const auto& [lane, chunk] : held) {
    const std::lock_guard lock(lane->mutex);
    lane->EndWaiting(chunk);
    if (idle) {
      bytes += lane->arena->TrimHeld(chunk);
      RecordMapping(*lane);
    } else {
      lane->arena->Free(chunk);
    }
  }
  return bytes;
}

}  // namespace jax_bfc
