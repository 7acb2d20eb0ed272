#include "pool/pool.h"

#include <algorithm>
#include <utility>

#include "source/host_memory.h"

namespace jax_bfc {
namespace {

constexpr uint64_t kIndexMask = (uint64_t{1} << Pool::kIndexBits) - 1;
constexpr uint64_t kGenerationMask = (uint64_t{1} << Pool::kGenerationBits) - 1;

// Pool, slot, entry, generation: 8 + 8 + 24 + 24 bits.
uint64_t MakeId(uint32_t pool, uint32_t slot, uint32_t entry,
                uint32_t generation) {
  return uint64_t{pool} << 56 | uint64_t{slot} << 48 |
         uint64_t{entry} << Pool::kGenerationBits | generation;
}

}  // namespace

Pool::Pool(uint32_t index, std::string device, const PoolConfig& config,
           Budget* budget, std::function<void()> reclaim)
    : index_(index),
      device_(std::move(device)),
      reclaim_(std::move(reclaim)),
      kernels_in_use_(std::make_unique<SharedGauge[]>(kMaxKernels)),
      source_(&host_, budget) {
  SetLimits(config);
}

void Pool::SetLimits(const PoolConfig& config) {
  config_ = config;
  host_ = HostSource(config.host_options());
  // A peak is at most 0.4 % of the limit off for each slot, a cache holds at
  // most 1.6 %.
  constexpr size_t kLeast = size_t{1} << 20;
  quantum_ = static_cast<int64_t>(std::max(kLeast, config.limit_bytes / 256));
  cache_max_bytes_ = std::max(kLeast, config.limit_bytes / 64);
  if (arena_ != nullptr) {
    arena_->set_limit_bytes(config.limit_bytes);
    arena_->set_growth(config.growth);
  }
}

Arena& Pool::arena() {
  if (arena_ == nullptr) {
    arena_ =
        std::make_unique<Arena>(&source_, config_.limit_bytes, config_.growth);
    if (config_.preallocate) {
      // As much as the system gives.
      size_t bytes = config_.limit_bytes;
      while (bytes >= source_.granularity() && !arena_->Grow(bytes)) bytes /= 2;
    }
  }
  return *arena_;
}

Slot* Pool::NewSlot(uint32_t index) {
  const std::lock_guard lock(slots_mutex_);
  Slot* slot = slots_[index].load(std::memory_order_acquire);
  if (slot == nullptr) {
    slot = new Slot;
    slots_[index].store(slot, std::memory_order_release);
  }
  return slot;
}

Pool::LockedSlots Pool::LockSlots() {
  LockedSlots locked{std::unique_lock(slots_mutex_), {}, {}};
  for (std::atomic<Slot*>& slot_pointer : slots_) {
    Slot* slot = slot_pointer.load(std::memory_order_acquire);
    if (slot == nullptr) continue;
    locked.slots.push_back(slot);
    locked.locks.emplace_back(slot->lock);
  }
  return locked;
}

// ---------------------------------------------------------------------------
// Allocate and free.

std::optional<Allocation> Pool::Allocate(KernelId kernel, size_t bytes,
                                         size_t alignment,
                                         std::unique_ptr<OomReport>* report,
                                         bool new_call) {
  const Request request{kernel, bytes, alignment, new_call};
  const uint32_t slot_index = ThreadSlot();
  Slot& slot = *SlotFor(slot_index);
  std::unique_lock lock(slot.lock);
  Entry* entry = slot.TakeCached(RoundedBytes(bytes), alignment);
  if (entry == nullptr) [[unlikely]] {
    return AllocateFromArena(std::move(lock), slot, slot_index, request,
                             report);
  }
  ++slot.cache_hits;
  return HandOut(slot, slot_index, *entry, request);
}

std::optional<Allocation> Pool::AllocateFromArena(
    std::unique_lock<SpinLock> lock, Slot& slot, uint32_t slot_index,
    const Request& request, std::unique_ptr<OomReport>* report) {
  const auto enter = [&](ChunkId chunk) {
    Entry& entry = slot.NewEntry();
    entry.address = arena_->chunk(chunk).address;
    entry.bytes = arena_->chunk(chunk).bytes;
    entry.chunk = chunk;
    return HandOut(slot, slot_index, entry, request);
  };
  {
    const std::lock_guard arena_lock(arena_mutex_);
    const ChunkId chunk = arena().TryAllocate(request.bytes, request.alignment);
    if (chunk != kNoChunk) return enter(chunk);
  }
  // Not under the slot's lock: flushing takes every slot's in turn.
  lock.unlock();
  Flush();
  ChunkId chunk = AllocateByGrowing(request.bytes, request.alignment);
  if (chunk == kNoChunk) {
    reclaim_();
    chunk = AllocateByGrowing(request.bytes, request.alignment);
  }
  lock.lock();
  if (chunk != kNoChunk) {
    const std::lock_guard arena_lock(arena_mutex_);
    return enter(chunk);
  }
  KernelCounters& counters = slot.Counters(request.kernel);
  ++counters.failures;
  counters.calls += request.new_call;
  lock.unlock();
  *report = std::make_unique<OomReport>(
      Report(request.kernel, request.bytes, request.alignment));
  return std::nullopt;
}

inline Allocation Pool::HandOut(Slot& slot, uint32_t slot_index, Entry& entry,
                                const Request& request) {
  entry.state = Entry::State::kLive;
  entry.kernel = request.kernel;
  entry.requested_bytes = request.bytes;
  const auto chunk_bytes = static_cast<int64_t>(entry.bytes);
  const int64_t quantum = quantum_.load(std::memory_order_relaxed);
  slot.requested_bytes += request.bytes;
  slot.in_use.Add(chunk_bytes, quantum, in_use_);
  KernelCounters& counters = slot.Counters(request.kernel);
  counters.calls += request.new_call;
  ++counters.allocations;
  counters.total_bytes += request.bytes;
  counters.largest_bytes =
      std::max<uint64_t>(counters.largest_bytes, request.bytes);
  counters.in_use.Add(chunk_bytes, quantum, kernels_in_use_[request.kernel]);
  return {reinterpret_cast<void*>(entry.address), entry.bytes,
          MakeId(index_, slot_index, entry.index, entry.generation)};
}

ChunkId Pool::AllocateByGrowing(size_t bytes, size_t alignment) {
  const std::lock_guard lock(arena_mutex_);
  return arena().Allocate(bytes, alignment);
}

bool Pool::Free(void* ptr, uint64_t id) {
  const auto slot_index = static_cast<uint32_t>(id >> 48 & 0xFF);
  if (PoolOf(id) != index_ || slot_index >= kSlots) return false;
  Slot* slot_pointer = slots_[slot_index].load(std::memory_order_acquire);
  if (slot_pointer == nullptr) return false;
  Slot& slot = *slot_pointer;
  const std::lock_guard lock(slot.lock);
  const auto index = static_cast<uint32_t>(id >> kGenerationBits & kIndexMask);
  if (index >= slot.entries.size()) return false;
  Entry& entry = slot.entries[index];
  if (entry.state != Entry::State::kLive ||
      entry.generation != (id & kGenerationMask) ||
      entry.address != reinterpret_cast<uintptr_t>(ptr)) {
    return false;
  }
  entry.generation =
      entry.generation == kGenerationMask ? 1 : entry.generation + 1;
  const auto chunk_bytes = static_cast<int64_t>(entry.bytes);
  const int64_t quantum = quantum_.load(std::memory_order_relaxed);
  slot.requested_bytes -= entry.requested_bytes;
  slot.in_use.Add(-chunk_bytes, quantum, in_use_);
  slot.kernels[entry.kernel].in_use.Add(-chunk_bytes, quantum,
                                        kernels_in_use_[entry.kernel]);

  const size_t max_bytes = cache_max_bytes_.load(std::memory_order_relaxed);
  if (slot.cached == kCacheChunks ||
      slot.cached_bytes + entry.bytes > max_bytes) [[unlikely]] {
    if (!MakeRoom(slot, entry, max_bytes)) return true;
  }
  slot.PutCached(entry);
  return true;
}

bool Pool::MakeRoom(Slot& slot, Entry& entry, size_t max_bytes) {
  const std::lock_guard arena_lock(arena_mutex_);
  const auto free_chunk = [&](ChunkId chunk) { arena_->Free(chunk); };
  if (entry.bytes > max_bytes) {
    free_chunk(entry.chunk);
    slot.Retire(entry);
    return false;
  }
  if (slot.cached == kCacheChunks) slot.Evict(kCacheEvicted, free_chunk);
  while (slot.cached_bytes + entry.bytes > max_bytes) {
    slot.Evict(1, free_chunk);
  }
  return true;
}

void Pool::Flush() {
  for (std::atomic<Slot*>& slot_pointer : slots_) {
    Slot* slot = slot_pointer.load(std::memory_order_acquire);
    if (slot == nullptr) continue;
    const std::lock_guard lock(slot->lock);
    const std::lock_guard arena_lock(arena_mutex_);
    slot->Evict(slot->cached, [&](ChunkId chunk) { arena_->Free(chunk); });
  }
}

size_t Pool::Trim() {
  Flush();
  const std::lock_guard lock(arena_mutex_);
  return arena_ == nullptr ? 0 : arena_->Trim();
}

// ---------------------------------------------------------------------------
// Statistics.

PoolStats Pool::Stats() {
  PoolStats stats;
  GaugeSum in_use;
  size_t cached = 0;
  const LockedSlots locked = LockSlots();
  for (const Slot* slot : locked.slots) {
    in_use.Add(slot->in_use);
    stats.requested_bytes += slot->requested_bytes;
    stats.cached_bytes += slot->cached_bytes;
    stats.cache_hits += slot->cache_hits;
    cached += slot->cached;
    for (uint32_t i = 0; i < slot->cached; ++i) {
      stats.largest_free_bytes =
          std::max(stats.largest_free_bytes, slot->cache_bytes[i]);
    }
    for (const KernelCounters& kernel : slot->kernels) {
      stats.allocations += kernel.allocations;
      stats.failures += kernel.failures;
      stats.total_bytes += kernel.total_bytes;
      stats.largest_bytes = std::max(stats.largest_bytes, kernel.largest_bytes);
    }
  }
  stats.bytes_in_use = in_use.Value(in_use_);
  stats.peak_bytes_in_use = in_use.Peak(in_use_);
  const std::lock_guard lock(arena_mutex_);
  if (arena_ != nullptr) stats.arena = arena_->stats();
  // With what a thread has just got by growing and not yet entered in its slot.
  stats.live = stats.arena.chunks_in_use - cached;
  stats.largest_free_bytes =
      std::max(stats.largest_free_bytes, stats.arena.largest_free_bytes);
  stats.limit_bytes =
      std::min(config_.limit_bytes, source_.budget_limit_bytes());
  return stats;
}

std::vector<KernelStats> Pool::Kernels() {
  const uint32_t count = KernelCount();
  std::vector<KernelStats> kernels(count);
  std::vector<GaugeSum> in_use(count);
  {
    const LockedSlots locked = LockSlots();
    for (const Slot* slot : locked.slots) {
      for (size_t i = 0; i < slot->kernels.size() && i < count; ++i) {
        const KernelCounters& from = slot->kernels[i];
        KernelStats& to = kernels[i];
        to.calls += from.calls;
        to.allocations += from.allocations;
        to.total_bytes += from.total_bytes;
        to.largest_bytes = std::max(to.largest_bytes, from.largest_bytes);
        to.failures += from.failures;
        in_use[i].Add(from.in_use);
      }
    }
    for (uint32_t i = 0; i < count; ++i) {
      kernels[i].bytes_in_use = in_use[i].Value(kernels_in_use_[i]);
      kernels[i].peak_bytes_in_use = in_use[i].Peak(kernels_in_use_[i]);
    }
  }
  std::vector<KernelStats> used;
  for (uint32_t i = 0; i < count; ++i) {
    KernelStats& kernel = kernels[i];
    kernel.call_sites = KernelCallSites(i).load(std::memory_order_relaxed);
    if (kernel.calls == 0 && kernel.call_sites == 0) continue;
    kernel.name = KernelName(i);
    used.push_back(std::move(kernel));
  }
  return used;
}

void Pool::ResetPeaks() {
  const LockedSlots locked = LockSlots();
  for (Slot* slot : locked.slots) {
    slot->in_use.Publish(in_use_);
    for (size_t i = 0; i < slot->kernels.size(); ++i) {
      slot->kernels[i].in_use.Publish(kernels_in_use_[i]);
      slot->kernels[i].largest_bytes = 0;
    }
  }
  in_use_.peak = in_use_.value.load();
  for (uint32_t i = 0; i < kMaxKernels; ++i) {
    kernels_in_use_[i].peak = kernels_in_use_[i].value.load();
  }
  const std::lock_guard lock(arena_mutex_);
  if (arena_ != nullptr) arena_->ResetPeaks();
}

OomReport Pool::Report(KernelId kernel, size_t bytes, size_t alignment) {
  const PoolStats stats = Stats();
  OomReport report;
  report.kernel = KernelName(kernel);
  report.device = device_;
  report.requested_bytes = bytes;
  report.alignment = alignment;
  report.limit_bytes = stats.limit_bytes;
  report.mapped_bytes = stats.arena.mapped_bytes;
  report.bytes_in_use = stats.bytes_in_use;
  report.largest_free_bytes = stats.largest_free_bytes;
  report.device_available_bytes = HostAvailableBytes();
  for (const KernelStats& k : Kernels()) {
    if (k.bytes_in_use > 0) report.holders.emplace_back(k.name, k.bytes_in_use);
  }
  std::stable_sort(
      report.holders.begin(), report.holders.end(),
      [](const auto& a, const auto& b) { return a.second > b.second; });
  if (report.holders.size() > 5) report.holders.resize(5);
  const std::lock_guard lock(arena_mutex_);
  last_oom_report_ = report.Text();
  return report;
}

std::string Pool::LastOomReport() {
  const std::lock_guard lock(arena_mutex_);
  return last_oom_report_;
}

// ---------------------------------------------------------------------------
// Everything.

Pool::Everything::Everything(Pool* pool)
    : pool_(pool), locked_(pool->LockSlots()), arena_lock_(pool->arena_mutex_) {
  for (Slot* slot : locked_.slots) {
    slot->Evict(slot->cached,
                [&](ChunkId chunk) { pool_->arena_->Free(chunk); });
  }
}

size_t Pool::Everything::Live() const {
  // The arena's count: it also has what a thread has just got by growing and
  // not yet entered in its slot.
  return pool_->arena_ == nullptr ? 0 : pool_->arena_->stats().chunks_in_use;
}

size_t Pool::Everything::MappedBytes() const {
  return pool_->arena_ == nullptr ? 0 : pool_->arena_->stats().mapped_bytes;
}

size_t Pool::Everything::MappedAfterTrim() const {
  return pool_->arena_ == nullptr
             ? 0
             : MappedBytes() - pool_->arena_->TrimmableBytes();
}

void Pool::Everything::Trim() {
  if (pool_->arena_ != nullptr) pool_->arena_->Trim();
}

void Pool::Everything::Apply(const PoolConfig& config) {
  pool_->SetLimits(config);
}

void Pool::Everything::Reset() {
  pool_->arena_.reset();
  pool_->last_oom_report_.clear();
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
}

}  // namespace jax_bfc
