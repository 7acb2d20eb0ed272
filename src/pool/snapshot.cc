#include "pool/snapshot.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "pool/pool.h"

namespace jax_bfc {

PoolSnapshot Pool::Snapshot() {
  PoolSnapshot snapshot;
  const Locked locked(this);

  std::unordered_map<uintptr_t, const Entry*> owners;
  for (const Slot* slot : locked.slots()) {
    for (size_t i = 0; i < slot->entries.size(); ++i) {
      const Entry& entry = slot->entries[i];
      if (entry.state == Entry::State::kLive ||
          entry.state == Entry::State::kCached) {
        owners[entry.address] = &entry;
      }
    }
  }
  const auto describe = [&](const Chunk& chunk) {
    SnapshotChunk row{
        chunk.address, chunk.bytes,         0,
        std::nullopt,  ByteState::kWaiting, chunk.previous == kNoChunk};
    if (chunk.state == ChunkState::kFree) {
      row.state = ByteState::kFree;
    } else if (chunk.state == ChunkState::kUnmapped) {
      row.state = ByteState::kUnmapped;
    } else if (const auto found = owners.find(chunk.address);
               found != owners.end()) {
      const Entry& entry = *found->second;
      const bool live = entry.state == Entry::State::kLive;
      row.state = live ? ByteState::kInUse : ByteState::kCached;
      row.requested_bytes = live ? entry.requested_bytes : 0;
      row.kernel = entry.kernel;
      row.pinned = entry.pinned;
    }
    return row;
  };
  snapshot.limit_bytes =
      std::min(config_.limit_bytes, source_.budget_limit_bytes());
  for (uint32_t i = 0; i < lanes_.size(); ++i) {
    if (lanes_[i].arena == nullptr) continue;
    SnapshotLane lane{i, std::nullopt, {}};
    if (by_stream_) lane.stream = streams_.StreamOf(i);
    lanes_[i].arena->ForEachChunk(
        [&](const Chunk& chunk) { lane.chunks.push_back(describe(chunk)); });
    snapshot.lanes.push_back(std::move(lane));
  }
  return snapshot;
}

}  // namespace jax_bfc
