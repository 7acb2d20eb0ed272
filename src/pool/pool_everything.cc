// A Pool as a whole: configured, measured and emptied at one moment.
#include <algorithm>
#include <string_view>
#include <utility>

#include "pool/pool.h"

namespace jax_bfc {

Pool::Locked::Locked(Pool* pool, std::defer_lock_t)
    : pool_(pool), none_new_(pool->slots_mutex_, std::defer_lock) {
  // All memory that it takes is taken before the first lock is.
  lanes_.reserve(pool->lanes_.size());
  slots_.reserve(kSlots);
  locks_.reserve(kSlots);
}

Pool::Locked::Locked(Pool* pool) : Locked(pool, std::defer_lock) {
  LockNewSlots();
  LockLanes();
  LockSlots();
}

void Pool::Locked::LockNewSlots() { none_new_.lock(); }

void Pool::Locked::LockLanes() {
  for (Lane& lane : pool_->lanes_) lanes_.emplace_back(lane.mutex);
}

void Pool::Locked::LockSlots() {
  for (const std::atomic<Slot*>& slot_pointer : pool_->slots_) {
    Slot* slot = slot_pointer.load(std::memory_order_acquire);
    if (slot == nullptr) continue;
    slots_.push_back(slot);
    locks_.emplace_back(slot->lock);
  }
}

Pool::Everything::Everything(Pool* pool)
    : pool_(pool),
      trim_lock_(pool->trim_mutex_, std::defer_lock),
      locked_(pool, std::defer_lock) {}

void Pool::Everything::Lock(int phase) {
  switch (phase) {
    case 0:
      return trim_lock_.lock();
    case 1:
      return locked_.LockNewSlots();
    case 2:
      return locked_.LockLanes();
    default:
      locked_.LockSlots();
      Flush();
  }
}

void Pool::Everything::Flush() {
  for (Slot* slot : locked_.slots()) {
    Evicted evicted;
    slot->Evict(slot->cached, &evicted);
    for (uint32_t i = 0; i < evicted.count; ++i) {
      slot->lane->arena->Free(evicted.chunks[i]);
    }
  }
}

uint64_t Pool::Everything::Live() const {
  // The arenas' count: it also has what is on its way between an arena and a
  // slot.
  uint64_t live = 0;
  for (const Lane& lane : pool_->lanes_) {
    if (lane.arena == nullptr) continue;
    live += lane.arena->stats().chunks_in_use - lane.waiting_chunks;
  }
  for (const Slot* slot : locked_.slots()) live -= slot->deferred_chunks;
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

void Pool::Everything::Prepare(const PoolConfig& config) {
  config_ = config;
  prepared_ = pool_->make_source_(config);
  pool_->sources_.reserve(pool_->sources_.size() + 1);
}

bool Pool::Everything::ChangesSource() const {
  return std::string_view(prepared_->name()) != pool_->source_.name();
}

void Pool::Everything::Apply() {
  const std::string_view name = prepared_->name();
  std::vector<std::unique_ptr<MemorySource>>& sources = pool_->sources_;
  auto source =
      std::find_if(sources.begin(), sources.end(),
                   [&](const auto& known) { return known->name() == name; });
  if (source == sources.end()) {
    source = sources.insert(source, std::move(prepared_));
  } else {
    (*source)->TakeOptions(*prepared_);
  }
  pool_->source_.set_source(source->get());
  pool_->SetLimits(config_);
}

bool Pool::Everything::Reset() {
  if (!pool_->WaitIdle()) return false;
  for (Slot* slot : locked_.slots()) {
    while (slot->deferred_chunks > 0) {
      Evicted evicted;
      slot->EndDeferred(slot->deferred_chunks, &evicted);
      for (uint32_t i = 0; i < evicted.count; ++i) {
        slot->lane->arena->Free(evicted.chunks[i]);
      }
    }
  }
  for (Lane& lane : pool_->lanes_) {
    if (lane.arena == nullptr) continue;
    lane.arena->Trim();
    pool_->RecordMapping(lane);
    if (lane.arena->stats().mapped_bytes != 0) return false;
    lane.arena.reset();
  }
  pool_->preallocated_ = false;
  pool_->source_.mapped().peak = 0;
  {
    const Guard lock(pool_->report_mutex_);
    pool_->last_oom_report_.clear();
  }
  pool_->in_use_.value = 0;
  pool_->in_use_.peak = 0;
  for (uint32_t i = 0; i < kMaxKernels; ++i) {
    pool_->kernels_in_use_[i].value = 0;
    pool_->kernels_in_use_[i].peak = 0;
  }
  for (Slot* slot : locked_.slots()) {
    slot->in_use = {};
    slot->requested_bytes = 0;
    slot->cache_hits = 0;
    slot->kernels.clear();
  }
  return true;
}

}  // namespace jax_bfc
