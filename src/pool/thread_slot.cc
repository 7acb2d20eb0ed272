#include "pool/thread_slot.h"

#include <atomic>
#include <bit>

namespace jax_bfc {
namespace {

std::atomic<uint64_t> slots_taken{0};
static_assert(kSlots == 64);
std::atomic<uint32_t> sharers{0};

// Gives the slot back when its thread ends. What the thread still allocates
// after that (a destructor of its own may) goes through a shared slot.
struct SlotOwner {
  uint32_t slot = internal::kNoSlot;
  ~SlotOwner() {
    if (slot == internal::kNoSlot) return;
    internal::thread_slot = kSlots - 1;
    slots_taken.fetch_and(~(uint64_t{1} << slot), std::memory_order_acq_rel);
  }
};
thread_local SlotOwner owner;

}  // namespace

namespace internal {

constinit thread_local uint32_t thread_slot = kNoSlot;

uint32_t AssignThreadSlot() {
  uint64_t taken = slots_taken.load(std::memory_order_relaxed);
  while (~taken != 0) {
    const int slot = std::countr_one(taken);
    if (slots_taken.compare_exchange_weak(taken, taken | (uint64_t{1} << slot),
                                          std::memory_order_acq_rel)) {
      owner.slot = static_cast<uint32_t>(slot);
      return thread_slot = owner.slot;
    }
  }
  return thread_slot = sharers.fetch_add(1, std::memory_order_relaxed) % kSlots;
}

}  // namespace internal

void KeepOnlyThisThreadSlot() {
  slots_taken.store(
      owner.slot == internal::kNoSlot ? 0 : uint64_t{1} << owner.slot,
      std::memory_order_relaxed);
}

}  // namespace jax_bfc
