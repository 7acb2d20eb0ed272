#include "pool/pool.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "core/size_class.h"
#include "pool/oom_hook.h"
#include "pool/warn.h"

namespace jax_bfc {
namespace {

static_assert(kStreamLanes < kSlots);
static_assert(kSlots < 1u << AllocationId::kSlotBits);
static_assert(kSlots <= 1u << StreamRef::kLaneBits);

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
      source_(sources_.emplace_back(make_source_(config)).get(), budget),
      by_stream_(source_.runs_ahead()),
      lanes_(by_stream_ ? 1 + kStreamLanes : 1) {
  if (Recorder::on()) watchers_ = kRecorder;
  SetLimits(config);
}

void Pool::SetLimits(const PoolConfig& config) {
  config_ = config;
  // A peak is at most 0.4 % of the limit off for each slot, a cache holds at
  // most 1.6 %.
  constexpr size_t kLeast = size_t{1} << 20;
  quantum_ = static_cast<int64_t>(std::max(kLeast, config.limit_bytes / 256));
  cache_max_bytes_ = std::max(kLeast, config.limit_bytes / 64);
  for (Lane& lane : lanes_) {
    if (lane.arena == nullptr) continue;
    lane.arena->set_limit_bytes(
        std::max(config.limit_bytes, lane.arena->stats().mapped_bytes));
    lane.arena->set_growth(config.growth);
  }
}

Arena& Pool::ArenaOf(Lane& lane) {
  if (lane.arena == nullptr) {
    lane.arena =
        std::make_unique<Arena>(&source_, config_.limit_bytes, config_.growth);
    if (config_.preallocate && !preallocated_.exchange(true)) {
      // As much as the system gives.
      const size_t granularity = source_.granularity();
      const size_t wanted =
          RoundDown(std::min(config_.limit_bytes, source_.budget_limit_bytes()),
                    granularity);
      size_t bytes = std::min(wanted, source_.AvailableBytes());
      while (bytes >= granularity && !lane.arena->Grow(bytes)) bytes /= 2;
      short_bytes_ = wanted - lane.arena->stats().mapped_bytes;
    }
  }
  return *lane.arena;
}

void Pool::WarnIfShort() {
  if (short_bytes_.load(std::memory_order_relaxed) == 0) [[likely]]
    return;
  const size_t missing = short_bytes_.exchange(0);
  if (missing == 0) return;
  Warn([&] {
    return "jax_bfc: preallocate=True could not map " + WithCommas(missing) +
           " bytes of the limit of " + device_ +
           ": the system or the device has no more. Give a smaller limit_bytes "
           "or memory_fraction in jax_bfc.configure(), or free memory "
           "elsewhere.";
  });
}

Slot* Pool::NewSlot(uint32_t index) {
  const Guard lock(slots_mutex_);
  Slot* slot = slots_[index].load(std::memory_order_acquire);
  if (slot == nullptr) {
    const bool caches = !by_stream_ || index != kNoStream;
    slot = new Slot(&LaneOfSlot(index), caches ? kCacheChunks : 0);
    slot->watchers = watchers_;
    slots_[index].store(slot, std::memory_order_release);
  }
  return slot;
}

// ---------------------------------------------------------------------------
// Streams.

uint32_t Pool::StreamOf(uint64_t stream_id) {
  std::optional<StreamRef> ref = streams_.Find(stream_id);
  if (!ref) {
    ref = streams_.Assign(stream_id, [&](uint32_t lane, auto&& release) {
      return Vacate(lane, release);
    });
  }
  return ref ? ref->Pack() : kNoStream;
}

template <typename Release>
bool Pool::Vacate(uint32_t index, Release&& release) {
  Slot& slot = *SlotFor(index);
  Lane& lane = lanes_[index];
  {
    const Guard slot_lock(slot.lock);
    // Whoever has the lane is about to use it.
    const std::unique_lock lane_lock(lane.mutex, std::try_to_lock);
    if (!lane_lock.owns_lock()) return false;
    Evicted evicted;
    slot.Evict(slot.cached, &evicted);
    for (uint32_t i = 0; i < evicted.count; ++i) {
      lane.arena->Free(evicted.chunks[i]);
    }
    if (lane.arena != nullptr &&
        lane.arena->stats().chunks_in_use != lane.waiting_chunks) {
      return false;
    }
    release();
  }
  // What the old stream still does, it does before the new one gets the memory.
  return WaitIdle();
}

bool Pool::WaitIdle() {
  const bool idle = source_.WaitIdle();
  if (!idle) could_not_wait_.store(true, std::memory_order_relaxed);
  return idle;
}

// ---------------------------------------------------------------------------
// Allocate and free.

bool Pool::Allocate(const Request& request, Allocation* made,
                    std::unique_ptr<OomReport>* report) {
  const uint32_t slot_index =
      by_stream_ ? StreamRef::Unpack(request.stream).lane : ThreadSlot();
  Slot& slot = *SlotFor(slot_index);
  slot.lock.lock();
  if (request.kernel < slot.kernels.size() && !IsStale(request)) [[likely]] {
    Entry* entry =
        slot.TakeCached(RoundedBytes(request.bytes), request.alignment);
    if (entry != nullptr) [[likely]] {
      ++slot.cache_hits;
      HandOut(slot, slot_index, *entry, request, made);
      if (slot.watchers != 0) [[unlikely]] {
        NoteHandOut(slot, *entry, made->id);
        slot.lock.unlock();
        Recorder::WriteFull();
        return true;
      }
      slot.lock.unlock();
      return true;
    }
  }
  const bool fits = AllocateFromArena(slot, slot_index, request, made, report);
  if (Recorder::on()) Recorder::WriteFull();
  return fits;
}

bool Pool::AllocateFromArena(Slot& slot, uint32_t slot_index,
                             const Request& request, Allocation* made,
                             std::unique_ptr<OomReport>* report) {
  std::unique_lock lock(slot.lock, std::adopt_lock);
  Lane& lane = *slot.lane;
  const auto without_order = [&] {
    lock.unlock();
    Request again = request;
    again.stream = kNoStream;
    return Allocate(again, made, report);
  };
  if (IsStale(request)) return without_order();
  Piece piece;
  if (const std::unique_lock lane_lock(lane.mutex, std::try_to_lock);
      lane_lock.owns_lock() && lane.arena != nullptr) {
    piece = PieceOf(lane,
                    lane.arena->TryAllocate(request.bytes, request.alignment));
  }
  if (piece.chunk == kNoChunk) {
    lock.unlock();
    piece = TakePiece(slot, request);
    WarnIfShort();
    lock.lock();
  }
  if (piece.chunk != kNoChunk) {
    // As long as the piece is in use, the lane does not change hands.
    std::exception_ptr no_room;
    try {
      slot.Prepare(request.kernel);
    } catch (const std::exception&) {
      no_room = std::current_exception();
    }
    if (!no_room && !IsStale(request)) {
      Enter(slot, slot_index, piece, request, made);
      return true;
    }
    lock.unlock();
    Evicted back;
    back.chunks[back.count++] = piece.chunk;
    GiveBack(lane, back);
    if (no_room) std::rethrow_exception(no_room);
    lock.lock();
  }
  if (IsStale(request)) return without_order();
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

Pool::Piece Pool::PieceOf(const Lane& lane, ChunkId id) {
  if (id == kNoChunk) return {};
  const Chunk& chunk = lane.arena->chunk(id);
  return {id, chunk.address, chunk.bytes};
}

Pool::Piece Pool::TakePiece(Slot& slot, const Request& request) {
  Lane& lane = *slot.lane;
  {
    const Guard lock(lane.mutex);
    const ChunkId chunk =
        ArenaOf(lane).TryAllocate(request.bytes, request.alignment);
    RecordMapping(lane);  // preallocated
    if (chunk != kNoChunk) return PieceOf(lane, chunk);
  }
  Flush(&lane);
  if (request.may_wait) FreeDeferred(slot);
  Piece piece = TakeByGrowing(lane, request);
  if (piece.chunk == kNoChunk && request.may_wait) {
    reclaim_();
    piece = TakeByGrowing(lane, request);
  }
  return piece;
}

Pool::Piece Pool::TakeByGrowing(Lane& lane, const Request& request) {
  const Guard lock(lane.mutex);
  Arena& arena = ArenaOf(lane);
  ChunkId chunk = arena.Allocate(request.bytes, request.alignment);
  if (chunk == kNoChunk && request.may_exceed_limit) {
    const BudgetedSource::BeyondBudget beyond;
    // No more than is needed.
    const size_t mapped = arena.stats().mapped_bytes;
    const size_t step = RoundUp(RoundedBytes(request.bytes) + request.alignment,
                                source_.granularity());
    const size_t limit = arena.limit_bytes();
    arena.set_limit_bytes(std::max(limit, mapped + step));
    chunk = arena.Allocate(request.bytes, request.alignment);
    arena.set_limit_bytes(std::max(limit, arena.stats().mapped_bytes));
  }
  RecordMapping(lane);
  return PieceOf(lane, chunk);
}

void Pool::GiveBack(Lane& lane, const Evicted& evicted) {
  if (evicted.count == 0) return;
  const Guard lock(lane.mutex);
  for (uint32_t i = 0; i < evicted.count; ++i) {
    lane.arena->Free(evicted.chunks[i]);
  }
}

void Pool::Enter(Slot& slot, uint32_t slot_index, const Piece& piece,
                 const Request& request, Allocation* made) {
  Entry& entry = slot.NewEntry();
  entry.address = piece.address;
  entry.bytes = piece.bytes;
  entry.chunk = piece.chunk;
  HandOut(slot, slot_index, entry, request, made);
  if (slot.watchers != 0) NoteHandOut(slot, entry, made->id);
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

bool Pool::Free(void* ptr, uint64_t id) {
  const AllocationId parts = AllocationId::Unpack(id);
  if (parts.pool != index_ || parts.slot >= kSlots) return false;
  Slot* slot_pointer = slots_[parts.slot].load(std::memory_order_acquire);
  if (slot_pointer == nullptr) return false;
  Slot& slot = *slot_pointer;
  Evicted evicted;
  bool watched = false;
  {
    const Guard lock(slot.lock);
    if (parts.entry >= slot.entries.size()) return false;
    Entry& entry = slot.entries[parts.entry];
    if (entry.state != Entry::State::kLive ||
        entry.generation != parts.generation ||
        entry.address != reinterpret_cast<uintptr_t>(ptr)) {
      return false;
    }
    watched = slot.watchers != 0;
    if (watched) [[unlikely]]
      NoteFree(slot, entry, id);
    entry.generation = AllocationId::Next(entry.generation);
    const auto chunk_bytes = static_cast<int64_t>(entry.bytes);
    const int64_t quantum = quantum_.load(std::memory_order_relaxed);
    slot.requested_bytes -= entry.requested_bytes;
    slot.in_use.Add(-chunk_bytes, quantum, in_use_);
    slot.kernels[entry.kernel].in_use.Add(-chunk_bytes, quantum,
                                          kernels_in_use_[entry.kernel]);

    const size_t max_bytes = cache_max_bytes_.load(std::memory_order_relaxed);
    if (slot.cached < slot.cache_chunks &&
        slot.cached_bytes + entry.bytes <= max_bytes) [[likely]] {
      slot.PutCached(entry);
    } else {
      MakeRoom(slot, entry, max_bytes, &evicted);
    }
  }
  GiveBack(*slot.lane, evicted);
  if (watched) [[unlikely]]
    Recorder::WriteFull();
  return true;
}

void Pool::MakeRoom(Slot& slot, Entry& entry, size_t max_bytes,
                    Evicted* evicted) {
  if (slot.cache_chunks == 0) {
    slot.Defer(entry);
    return;
  }
  if (entry.bytes > max_bytes) {
    evicted->chunks[evicted->count++] = entry.chunk;
    slot.Retire(entry);
    return;
  }
  if (slot.cached == kCacheChunks) slot.Evict(kCacheEvicted, evicted);
  while (slot.cached_bytes + entry.bytes > max_bytes) slot.Evict(1, evicted);
  slot.PutCached(entry);
}

}  // namespace jax_bfc
