#include "pool/pool.h"

#include <algorithm>
#include <utility>

#include "pool/oom_hook.h"

namespace jax_bfc {
namespace {

static_assert(Pool::kStreams < kSlots);
static_assert(kSlots < 255);  // a byte of an id, and of a stream's name
constexpr uint32_t kUnordered = Pool::kNoStream;
// No stream's id and 1: its slot is between two streams.
constexpr uint64_t kNobody = ~uint64_t{0};

constexpr uint64_t kGenerationMask = (uint64_t{1} << Pool::kGenerationBits) - 1;

}  // namespace

std::unique_ptr<MemorySource> MakeHostSource(const PoolConfig& config) {
  return std::make_unique<HostSource>(
      HostSource::Options{config.huge_pages, config.preallocate});
}

Pool::Pool(uint32_t index, std::string device, const PoolConfig& config,
           Budget* budget, std::function<void()> reclaim,
           SourceMaker make_source)
    : index_(index),
      device_(std::move(device)),
      reclaim_(std::move(reclaim)),
      make_source_(std::move(make_source)),
      kernels_in_use_(std::make_unique<SharedGauge[]>(kMaxKernels)),
      kernels_pinned_(std::make_unique<std::atomic<int64_t>[]>(kMaxKernels)),
      device_source_(make_source_(config)),
      source_(device_source_.get(), budget),
      by_stream_(source_.runs_ahead()),
      lanes_(by_stream_ ? 1 + kStreams : 1) {
  if (Recorder::on()) watchers_ = kRecorder;
  SetLimits(config);
}

void Pool::SetLimits(const PoolConfig& config) {
  config_ = config;
  std::unique_ptr<MemorySource> source = make_source_(config);
  source_.set_source(source.get());
  device_source_ = std::move(source);
  // A peak is at most 0.4 % of the limit off for each slot, a cache holds at
  // most 1.6 %.
  constexpr size_t kLeast = size_t{1} << 20;
  quantum_ = static_cast<int64_t>(std::max(kLeast, config.limit_bytes / 256));
  cache_max_bytes_ = std::max(kLeast, config.limit_bytes / 64);
  for (Lane& lane : lanes_) {
    if (lane.arena == nullptr) continue;
    lane.arena->set_limit_bytes(config.limit_bytes);
    lane.arena->set_growth(config.growth);
  }
}

Arena& Pool::ArenaOf(Lane& lane) {
  if (lane.arena == nullptr) {
    lane.arena =
        std::make_unique<Arena>(&source_, config_.limit_bytes, config_.growth);
    if (config_.preallocate && !preallocated_.exchange(true)) {
      // As much as the system gives.
      size_t bytes = config_.limit_bytes;
      while (bytes >= source_.granularity() && !lane.arena->Grow(bytes)) {
        bytes /= 2;
      }
    }
  }
  return *lane.arena;
}

Slot* Pool::NewSlot(uint32_t index) {
  const std::lock_guard lock(slots_mutex_);
  Slot* slot = slots_[index].load(std::memory_order_acquire);
  if (slot == nullptr) {
    const bool caches = !by_stream_ || index != kUnordered;
    slot = new Slot(&LaneOfSlot(index), caches ? kCacheChunks : 0);
    slot->watchers = watchers_;
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
// Streams.

uint32_t Pool::StreamOf(uint64_t stream_id) {
  for (uint32_t i = 0; i < kStreams; ++i) {
    const auto index = static_cast<uint32_t>(1 + (stream_id + i) % kStreams);
    const Slot* slot = slots_[index].load(std::memory_order_acquire);
    if (slot == nullptr) break;
    // Before the id: if the slot changes hands in between, this is out of date,
    // and Allocate sees it.
    const uint32_t generation =
        slot->stream_generation.load(std::memory_order_acquire);
    if (stream_ids_[index].load(std::memory_order_acquire) == stream_id + 1) {
      return index | generation << 8;
    }
  }
  return NewStream(stream_id);
}

uint32_t Pool::NewStream(uint64_t stream_id) {
  const std::lock_guard lock(streams_mutex_);
  const auto give = [&](uint32_t index) {
    Slot* slot = SlotFor(index);
    stream_ids_[index].store(stream_id + 1, std::memory_order_release);
    return index | slot->stream_generation.load() << 8;
  };
  for (uint32_t i = 0; i < kStreams; ++i) {
    const auto index = static_cast<uint32_t>(1 + (stream_id + i) % kStreams);
    const uint64_t id = stream_ids_[index].load(std::memory_order_acquire);
    if (id == 0 || id == stream_id + 1) return give(index);
  }
  for (uint32_t i = 0; i < kStreams; ++i) {
    const uint32_t index = next_reassigned_;
    next_reassigned_ = 1 + index % kStreams;
    if (Reassign(index)) return give(index);
  }
  return kNoStream;
}

bool Pool::Reassign(uint32_t index) {
  Slot& slot = *SlotFor(index);
  Lane& lane = lanes_[index];
  {
    const std::lock_guard slot_lock(slot.lock);
    const std::lock_guard lane_lock(lane.mutex);
    slot.Evict(slot.cached, [&](ChunkId chunk) { lane.arena->Free(chunk); });
    if (lane.arena != nullptr &&
        lane.arena->stats().chunks_in_use != lane.waiting_chunks) {
      return false;
    }
    slot.stream_generation.fetch_add(1);
    stream_ids_[index].store(kNobody);
  }
  // What the old stream still does, it does before the new one gets the memory.
  return source_.WaitIdle();
}

// ---------------------------------------------------------------------------
// Allocate and free.

bool Pool::Allocate(const Request& request, Allocation* made,
                    std::unique_ptr<OomReport>* report) {
  const uint32_t slot_index = by_stream_ ? request.stream & 0xFF : ThreadSlot();
  Slot& slot = *SlotFor(slot_index);
  slot.lock.lock();
  if (request.kernel < slot.kernels.size() && !IsStale(slot, request))
      [[likely]] {
    Entry* entry =
        slot.TakeCached(RoundedBytes(request.bytes), request.alignment);
    if (entry != nullptr) [[likely]] {
      ++slot.cache_hits;
      HandOut(slot, slot_index, *entry, request, made);
      if (slot.watchers != 0) [[unlikely]] {
        NoteHandOut(slot, *entry, made->id);
        slot.lock.unlock();
        if (Recorder::on()) Recorder::Get().WriteFull();
        return true;
      }
      slot.lock.unlock();
      return true;
    }
  }
  const bool fits = AllocateFromArena(slot, slot_index, request, made, report);
  if (Recorder::on()) Recorder::Get().WriteFull();
  return fits;
}

bool Pool::AllocateFromArena(Slot& slot, uint32_t slot_index,
                             const Request& request, Allocation* made,
                             std::unique_ptr<OomReport>* report) {
  std::unique_lock lock(slot.lock, std::adopt_lock);
  slot.Counters(request.kernel);  // there from now on
  const auto without_order = [&] {
    lock.unlock();
    Request again = request;
    again.stream = kNoStream;
    return Allocate(again, made, report);
  };
  if (IsStale(slot, request)) return without_order();
  Lane& lane = *slot.lane;
  const auto enter = [&](ChunkId chunk) {
    Entry& entry = slot.NewEntry();
    entry.address = lane.arena->chunk(chunk).address;
    entry.bytes = lane.arena->chunk(chunk).bytes;
    entry.chunk = chunk;
    HandOut(slot, slot_index, entry, request, made);
    if (slot.watchers != 0) NoteHandOut(slot, entry, made->id);
    return true;
  };
  {
    const std::lock_guard lane_lock(lane.mutex);
    const ChunkId chunk =
        ArenaOf(lane).TryAllocate(request.bytes, request.alignment);
    RecordMapping(lane);  // preallocated
    if (chunk != kNoChunk) return enter(chunk);
  }
  // Not under the slot's lock: flushing takes every slot's in turn.
  lock.unlock();
  Flush(&lane);
  if (request.may_wait) FreeDeferred(lane);
  ChunkId chunk = AllocateByGrowing(lane, request.bytes, request.alignment);
  if (chunk == kNoChunk && request.may_wait) {
    reclaim_();
    chunk = AllocateByGrowing(lane, request.bytes, request.alignment);
  }
  lock.lock();
  slot.Counters(request.kernel);  // a reset may have dropped them
  if (chunk != kNoChunk) {
    const std::lock_guard lane_lock(lane.mutex);
    if (!IsStale(slot, request)) return enter(chunk);
    lane.arena->Free(chunk);
  }
  if (IsStale(slot, request)) return without_order();
  if (request.may_wait && request.may_call_back && HasOomHook()) {
    lock.unlock();
    if (RunOomHook(Report(request))) {
      Request again = request;
      again.may_call_back = false;
      return Allocate(again, made, report);
    }
    lock.lock();
  }
  KernelCounters& counters = slot.Counters(request.kernel);
  ++counters.failures;
  counters.calls += request.new_call;
  lock.unlock();
  RecordRare(EventKind::kFailure, request.kernel, request.bytes, 0, slot_index);
  *report = std::make_unique<OomReport>(Report(request));
  KeepReport(**report);
  return false;
}

inline void Pool::HandOut(Slot& slot, uint32_t slot_index, Entry& entry,
                          const Request& request, Allocation* made) {
  entry.state = Entry::State::kLive;
  entry.kernel = request.kernel;
  entry.requested_bytes = request.bytes;
  const auto chunk_bytes = static_cast<int64_t>(entry.bytes);
  const int64_t quantum = quantum_.load(std::memory_order_relaxed);
  slot.requested_bytes += request.bytes;
  slot.in_use.Add(chunk_bytes, quantum, in_use_);
  KernelCounters& counters = slot.kernels[request.kernel];
  counters.calls += request.new_call;
  ++counters.allocations;
  counters.total_bytes += request.bytes;
  counters.largest_bytes =
      std::max<uint64_t>(counters.largest_bytes, request.bytes);
  counters.in_use.Add(chunk_bytes, quantum, kernels_in_use_[request.kernel]);
  *made = {reinterpret_cast<void*>(entry.address), entry.bytes,
           MakeId(slot_index, entry)};
}

ChunkId Pool::AllocateByGrowing(Lane& lane, size_t bytes, size_t alignment) {
  const std::lock_guard lock(lane.mutex);
  const ChunkId chunk = ArenaOf(lane).Allocate(bytes, alignment);
  RecordMapping(lane);
  return chunk;
}

bool Pool::Free(void* ptr, uint64_t id) {
  const uint32_t slot_index = SlotOf(id);
  if (PoolOf(id) != index_ || slot_index >= kSlots) return false;
  Slot* slot_pointer = slots_[slot_index].load(std::memory_order_acquire);
  if (slot_pointer == nullptr) return false;
  Slot& slot = *slot_pointer;
  const std::lock_guard lock(slot.lock);
  const uint32_t index = EntryOf(id);
  if (index >= slot.entries.size()) return false;
  Entry& entry = slot.entries[index];
  if (entry.state != Entry::State::kLive ||
      entry.generation != (id & kGenerationMask) ||
      entry.address != reinterpret_cast<uintptr_t>(ptr)) {
    return false;
  }
  if (slot.watchers != 0) [[unlikely]]
    NoteFree(slot, entry, id);
  entry.generation =
      entry.generation == kGenerationMask ? 1 : entry.generation + 1;
  const auto chunk_bytes = static_cast<int64_t>(entry.bytes);
  const int64_t quantum = quantum_.load(std::memory_order_relaxed);
  slot.requested_bytes -= entry.requested_bytes;
  slot.in_use.Add(-chunk_bytes, quantum, in_use_);
  slot.kernels[entry.kernel].in_use.Add(-chunk_bytes, quantum,
                                        kernels_in_use_[entry.kernel]);

  const size_t max_bytes = cache_max_bytes_.load(std::memory_order_relaxed);
  if (slot.cached == slot.cache_chunks ||
      slot.cached_bytes + entry.bytes > max_bytes) [[unlikely]] {
    if (!MakeRoom(slot, entry, max_bytes)) return true;
  }
  slot.PutCached(entry);
  return true;
}

bool Pool::MakeRoom(Slot& slot, Entry& entry, size_t max_bytes) {
  Lane& lane = *slot.lane;
  const std::lock_guard lane_lock(lane.mutex);
  if (slot.cache_chunks == 0) {
    lane.StartWaiting(entry.chunk);
    lane.deferred.push_back(entry.chunk);
    slot.Retire(entry);
    return false;
  }
  const auto free_chunk = [&](ChunkId chunk) { lane.arena->Free(chunk); };
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

}  // namespace jax_bfc
