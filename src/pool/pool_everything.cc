// A Pool as a whole: configured, measured and emptied at one moment.
#include <string_view>

#include "pool/pool.h"

namespace jax_bfc {

Pool::Everything::Everything(Pool* pool)
    : pool_(pool), trim_lock_(pool->trim_mutex_), locked_(pool->LockSlots()) {
  // A lane without a slot is in nobody's use, and no slot is made meanwhile.
  const Lane* last = nullptr;
  for (const Slot* slot : locked_.slots) {
    if (slot->lane == last) continue;  // the host's, which all share
    lane_locks_.emplace_back(slot->lane->mutex);
    last = slot->lane;
  }
  for (Slot* slot : locked_.slots) {
    slot->Evict(slot->cached,
                [&](ChunkId chunk) { slot->lane->arena->Free(chunk); });
  }
}

uint64_t Pool::Everything::Live() const {
  // The arenas' count: it also has what a thread has just got by growing and
  // not yet entered in its slot.
  uint64_t live = 0;
  for (const Lane& lane : pool_->lanes_) {
    if (lane.arena == nullptr) continue;
    live += lane.arena->stats().chunks_in_use - lane.waiting_chunks;
  }
  return live;
}

size_t Pool::Everything::MappedBytes() const {
  size_t bytes = 0;
  for (const Lane& lane : pool_->lanes_) {
    if (lane.arena != nullptr) bytes += lane.arena->stats().mapped_bytes;
  }
  return bytes;
}

size_t Pool::Everything::MappedAfterTrim() const {
  size_t bytes = MappedBytes();
  for (const Lane& lane : pool_->lanes_) {
    if (lane.arena != nullptr) bytes -= lane.arena->TrimmableBytes();
  }
  return bytes;
}

void Pool::Everything::Trim() {
  for (Lane& lane : pool_->lanes_) {
    if (lane.arena == nullptr) continue;
    lane.arena->Trim();
    pool_->RecordMapping(lane);
  }
}

bool Pool::Everything::ChangesSource(const PoolConfig& config) const {
  return std::string_view(pool_->make_source_(config)->name()) !=
         pool_->source_.name();
}

void Pool::Everything::Apply(const PoolConfig& config) {
  pool_->SetLimits(config);
}

bool Pool::Everything::Reset() {
  if (!pool_->source_.WaitIdle()) return false;
  for (Lane& lane : pool_->lanes_) {
    if (lane.arena == nullptr) continue;
    for (const ChunkId chunk : lane.deferred) {
      lane.EndWaiting(chunk);
      lane.arena->Free(chunk);
    }
    lane.deferred.clear();
    lane.arena->Trim();
    pool_->RecordMapping(lane);
    if (lane.arena->stats().mapped_bytes != 0) return false;
    lane.arena.reset();
  }
  pool_->preallocated_ = false;
  pool_->source_.mapped().peak = 0;
  {
    const std::lock_guard lock(pool_->report_mutex_);
    pool_->last_oom_report_.clear();
  }
  pool_->in_use_.value = 0;
  pool_->in_use_.peak = 0;
  for (uint32_t i = 0; i < kMaxKernels; ++i) {
    pool_->kernels_in_use_[i].value = 0;
    pool_->kernels_in_use_[i].peak = 0;
  }
  for (Slot* slot : locked_.slots) {
    slot->in_use = {};
    slot->requested_bytes = 0;
    slot->cache_hits = 0;
    slot->kernels.clear();
  }
  return true;
}

}  // namespace jax_bfc
