// Those who hear of every event of a Pool, while there are any.
#include <utility>
#include <vector>

#include "pool/pool.h"

namespace jax_bfc {

void Pool::SetWatcher(const Locked& locked, Watcher watcher, bool on) {
  watchers_ = on ? watchers_ | watcher : watchers_ & ~watcher;
  for (Slot* slot : locked.slots()) slot->watchers = watchers_;
}

void Pool::NoteHandOut(Slot& slot, const Entry& entry, uint64_t id) {
  if ((slot.watchers & kPeaks) != 0) {
    peaks_.Change(entry.kernel, static_cast<int64_t>(entry.bytes));
  }
  if ((slot.watchers & kRecorder) != 0) {
    Record(slot, entry, id, EventKind::kAllocate);
  }
}

void Pool::NoteFree(Slot& slot, const Entry& entry, uint64_t id) {
  if ((slot.watchers & kPeaks) != 0) {
    peaks_.Change(entry.kernel, -static_cast<int64_t>(entry.bytes));
  }
  if ((slot.watchers & kRecorder) != 0) {
    Record(slot, entry, id, EventKind::kFree);
  }
}

// ---------------------------------------------------------------------------
// Peaks.

uint64_t Pool::OpenPeak() {
  std::vector<int64_t> in_use(kMaxKernels);
  const Locked locked(this);
  in_use.resize(KernelCount());
  for (size_t i = 0; i < in_use.size(); ++i) {
    in_use[i] = kernels_in_use_[i].value.load(std::memory_order_relaxed);
  }
  for (const Slot* slot : locked.slots()) {
    // Names that came after the count was read hold nothing yet.
    for (size_t i = 0; i < slot->kernels.size() && i < in_use.size(); ++i) {
      in_use[i] += slot->kernels[i].in_use.delta;
    }
  }
  const uint64_t block = peaks_.Open(in_use);
  SetWatcher(locked, kPeaks, true);
  return block;
}

void Pool::ClosePeak(uint64_t block) {
  const Locked locked(this);
  if (!peaks_.Close(block)) SetWatcher(locked, kPeaks, false);
}

// ---------------------------------------------------------------------------
// Recording.

inline void Pool::Record(Slot& slot, const Entry& entry, uint64_t id,
                         EventKind kind) {
  Recorder& recorder = Recorder::Get();
  if (slot.events == nullptr || slot.events->full()) [[unlikely]] {
    slot.events = recorder.Exchange(std::move(slot.events));
    if (slot.events == nullptr) return;  // the host has no memory: counted
  }
  const auto slot_index = static_cast<uint8_t>(AllocationId::Unpack(id).slot);
  slot.events->events[slot.events->count++] = {
      recorder.NowNs(),
      entry.address,
      id,
      entry.requested_bytes,
      entry.bytes,
      static_cast<uint16_t>(entry.kernel),
      static_cast<uint16_t>(index_),
      kind,
      by_stream_ ? slot_index : uint8_t{0},
      slot_index,
      0};
}

void Pool::RecordRare(EventKind kind, uint32_t kernel, size_t requested_bytes,
                      size_t chunk_bytes, size_t lane) {
  if (!Recorder::on()) return;
  Recorder::Get().Note(
      {0, 0, 0, requested_bytes, chunk_bytes, static_cast<uint16_t>(kernel),
       static_cast<uint16_t>(index_), kind,
       by_stream_ ? static_cast<uint8_t>(lane) : uint8_t{0}, 0, 0});
}

void Pool::RecordMapping(Lane& lane) {
  if (!Recorder::on()) [[likely]]
    return;
  const size_t now =
      lane.arena == nullptr ? 0 : lane.arena->stats().mapped_bytes;
  const size_t before = std::exchange(lane.recorded_mapped_bytes, now);
  if (now == before) return;
  RecordRare(now > before ? EventKind::kGrow : EventKind::kTrim, kNoKernel, 0,
             now > before ? now - before : before - now,
             static_cast<size_t>(&lane - lanes_.data()));
}

void Pool::StartRecording() {
  const Locked locked(this);
  for (Lane& lane : lanes_) {
    lane.recorded_mapped_bytes = 0;
    RecordMapping(lane);
  }
  for (uint32_t index = 0; index < kSlots; ++index) {
    Slot* slot = slots_[index].load(std::memory_order_acquire);
    if (slot == nullptr) continue;
    for (size_t i = 0; i < slot->entries.size(); ++i) {
      const Entry& entry = slot->entries[i];
      if (entry.state != Entry::State::kLive) continue;
      Record(*slot, entry, MakeId(index, entry), EventKind::kHeld);
    }
  }
  SetWatcher(locked, kRecorder, true);
}

void Pool::StopRecording() {
  const Locked locked(this);
  SetWatcher(locked, kRecorder, false);
  for (Slot* slot : locked.slots()) {
    if (slot->events == nullptr) continue;
    Recorder::Get().Exchange(std::move(slot->events));
    slot->events = nullptr;
  }
}

}  // namespace jax_bfc
