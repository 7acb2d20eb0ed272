#include "pool/pins.h"

#include <algorithm>
#include <atomic>
#include <cstdio>

#include "core/size_class.h"
#include "pool/registry.h"

namespace jax_bfc {
namespace {

// A chunk that nobody else gets.
bool Take(Pool& pool, Pool::Request request, Allocation* made,
          std::unique_ptr<OomReport>* report, bool for_life) {
  request.stream = Pool::kNoStream;
  request.may_wait = false;
  if (!pool.Allocate(request, made, report)) return false;
  pool.CountPinned(made->id, /*pinned=*/true, for_life);
  return true;
}

}  // namespace

Pins::~Pins() {
  for (const Pin& pin : pins_) {
    // A forked child has other pools, and runs this for its parent's.
    if (FindPool(pin.pool->index()) != pin.pool) continue;
    pin.pool->CountPinned(pin.allocation.id, /*pinned=*/false,
                          /*for_life=*/false);
    pin.pool->Free(pin.allocation.ptr, pin.allocation.id);
  }
}

bool Pins::Get(Pool& pool, uint32_t index, const Pool::Request& request,
               Allocation* made, std::unique_ptr<OomReport>* report) {
  const std::lock_guard lock(mutex_);
  // The oldest that fits: the same one for the same request, since pins are
  // only added.
  const auto pin = std::find_if(pins_.begin(), pins_.end(), [&](const Pin& p) {
    return p.pool == &pool && p.index == index &&
           p.allocation.bytes >= request.bytes &&
           reinterpret_cast<uintptr_t>(p.allocation.ptr) % request.alignment ==
               0;
  });
  if (pin != pins_.end()) {
    *made = pin->allocation;
    pool.CountAgain(request);
  } else {
    if (!Take(pool, request, made, report, /*for_life=*/false)) return false;
    pins_.push_back({&pool, index, *made});
  }
  made->id = PinnedId(pool.index());
  return true;
}

bool PinForLife(Pool& pool, const Pool::Request& request, Allocation* made,
                std::unique_ptr<OomReport>* report) {
  if (!Take(pool, request, made, report, /*for_life=*/true)) return false;
  made->id = PinnedId(pool.index());
  static std::atomic<bool> said{false};
  if (!said.exchange(true)) {
    std::fprintf(
        stderr,
        "jax_bfc: warning: kernel '%s' was captured into a CUDA graph and is "
        "not registered by jax_bfc.register_ffi_target: its scratch there is "
        "kept for the life of the process, at each capture anew. Said once.\n",
        KernelName(request.kernel).c_str());
  }
  return true;
}

}  // namespace jax_bfc
