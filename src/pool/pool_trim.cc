// A Pool gives back: caches to arenas, what was deferred, steps to the system.
#include <utility>
#include <vector>

#include "pool/pool.h"

namespace jax_bfc {

void Pool::Flush(const Lane* only) {
  for (std::atomic<Slot*>& slot_pointer : slots_) {
    Slot* slot = slot_pointer.load(std::memory_order_acquire);
    if (slot == nullptr || (only != nullptr && slot->lane != only)) continue;
    Evicted evicted;
    {
      const Guard lock(slot->lock);
      slot->Evict(slot->cached, &evicted);
    }
    GiveBack(*slot->lane, evicted);
  }
}

void Pool::FreeDeferred(Slot& slot) {
  uint64_t last = 0;
  {
    const Guard lock(slot.lock);
    if (slot.deferred_chunks == 0) return;
    last = slot.deferred_ever;
  }
  if (!WaitIdle()) return;
  for (;;) {
    Evicted evicted;
    {
      const Guard lock(slot.lock);
      // What was deferred since then stays.
      const uint64_t newer = slot.deferred_ever - last;
      if (slot.deferred_chunks <= newer) return;
      slot.EndDeferred(slot.deferred_chunks - newer, &evicted);
    }
    GiveBack(*slot.lane, evicted);
  }
}

size_t Pool::Trim() {
  const Guard trim_lock(trim_mutex_);
  Flush();
  if (!by_stream_) {
    Lane& lane = lanes_[0];
    const Guard lock(lane.mutex);
    const size_t bytes = lane.arena == nullptr ? 0 : lane.arena->Trim();
    RecordMapping(lane);
    return bytes;
  }
  FreeDeferred(*SlotFor(kNoStream));
  // Held, so that nobody starts to use them while the device finishes what did.
  std::vector<std::pair<Lane*, ChunkId>> held;  // the first of each lane
  held.reserve(lanes_.size());
  for (Lane& lane : lanes_) {
    const Guard lock(lane.mutex);
    if (lane.arena == nullptr) continue;
    const ChunkId first = lane.arena->HoldFreeSteps();
    if (first != kNoChunk) held.emplace_back(&lane, first);
    for (ChunkId chunk = first; chunk != kNoChunk;
         chunk = lane.arena->NextHeld(chunk)) {
      lane.StartWaiting(chunk);
    }
  }
  if (held.empty()) return 0;
  const bool idle = WaitIdle();
  size_t bytes = 0;
  for (const auto& [lane, first] : held) {
    const Guard lock(lane->mutex);
    for (ChunkId chunk = first; chunk != kNoChunk;) {
      const ChunkId next = lane->arena->NextHeld(chunk);
      lane->EndWaiting(chunk);
      if (idle) {
        bytes += lane->arena->TrimHeld(chunk);
      } else {
        lane->arena->Free(chunk);
      }
      chunk = next;
    }
    RecordMapping(*lane);
  }
  return bytes;
}

}  // namespace jax_bfc
