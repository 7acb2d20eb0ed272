// Those who hear of every event of a Pool, while there are any.
#include <utility>
#include <vector>

#include "pool/pool.h"

namespace jax_bfc {

void Pool::SetWatcher(const LockedSlots& locked, Watcher watcher, bool on) {
  watchers_ = on ? watchers_ | watcher : watchers_ & ~watcher;
  for (Slot* slot : locked.slots) slot->watchers = watchers_;
}

void Pool::NoteHandOut(Slot& slot, const Entry& entry) {
  if ((slot.watchers & kPeaks) != 0) {
    peaks_.Change(entry.kernel, static_cast<int64_t>(entry.bytes));
  }
}

void Pool::NoteFree(Slot& slot, const Entry& entry) {
  if ((slot.watchers & kPeaks) != 0) {
    peaks_.Change(entry.kernel, -static_cast<int64_t>(entry.bytes));
  }
}

uint64_t Pool::OpenPeak() {
  const LockedSlots locked = LockSlots();
  std::vector<int64_t> in_use(KernelCount());
  for (size_t i = 0; i < in_use.size(); ++i) {
    in_use[i] = kernels_in_use_[i].value.load(std::memory_order_relaxed);
  }
  for (const Slot* slot : locked.slots) {
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
  const LockedSlots locked = LockSlots();
  if (!peaks_.Close(block)) SetWatcher(locked, kPeaks, false);
}

}  // namespace jax_bfc
