#include "base/locks.h"

#include <sched.h>

#include <algorithm>
#include <cstdint>
#include <ctime>

#ifdef JAX_BFC_CHECK_LOCKS
#include <array>
#include <cstdio>
#include <cstdlib>
#endif

namespace jax_bfc {

void ShortLock::Wait() {
  // Most holders are gone within nanoseconds. One that has lost its core needs
  // a chance to run; one that walks over a pool takes a while. Sleeping by the
  // clock keeps the unlock a plain store, since nobody needs to be woken.
  constexpr int kSpins = 256;
  constexpr int kYields = 16;
  constexpr int64_t kMostNs = 1'000'000;
  int64_t ns = 20'000;
  for (int i = 0; locked_.load(std::memory_order_relaxed); ++i) {
    if (i < kSpins) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#elif defined(__aarch64__)
      asm volatile("yield");
#endif
    } else if (i < kSpins + kYields) {
      sched_yield();
    } else {
      const timespec pause = {0, ns};
      nanosleep(&pause, nullptr);
      ns = std::min(2 * ns, kMostNs);
    }
  }
}

#ifdef JAX_BFC_CHECK_LOCKS
namespace internal {
namespace {

constexpr std::array kNames = {
    "registry", "targets",       "graph scratch", "streams",
    "trim",     "new slots",     "lane",          "slot",
    "peaks",    "device idle",   "device memory", "driver",
    "report",   "recorder file", "recorder",      "kernels"};
static_assert(kNames.size() == static_cast<size_t>(LockRank::kKernels) + 1);

// How many locks of each rank this thread holds.
constinit thread_local std::array<uint32_t, kNames.size()> held{};

bool MayHoldSeveral(LockRank rank) {
  return rank == LockRank::kLane || rank == LockRank::kSlot ||
         rank == LockRank::kTrim || rank == LockRank::kNewSlots;
}

}  // namespace

void BeforeLock(LockRank rank) {
  const auto wanted = static_cast<size_t>(rank);
  for (size_t i = wanted + (MayHoldSeveral(rank) ? 1 : 0); i < held.size();
       ++i) {
    if (held[i] == 0) continue;
    std::fprintf(stderr,
                 "jax_bfc: the lock '%s' is taken while '%s' is held, against "
                 "the order in base/locks.h\n",
                 kNames[wanted], kNames[i]);
    std::abort();
  }
}

void AfterLock(LockRank rank) { ++held[static_cast<size_t>(rank)]; }
void BeforeUnlock(LockRank rank) { --held[static_cast<size_t>(rank)]; }

}  // namespace internal
#endif

}  // namespace jax_bfc
