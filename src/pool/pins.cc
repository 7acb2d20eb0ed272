#include "pool/pins.h"

#include <algorithm>
#include <atomic>
#include <bit>

#include "core/size_class.h"
#include "pool/registry.h"
#include "pool/warn.h"

namespace jax_bfc {
namespace {

// A chunk that nobody else gets.
bool Take(Pool& pool, Pool::Request request, Allocation* made,
          std::unique_ptr<OomReport>* report, bool for_life) {
  request.stream = Pool::kNoStream;
  request.may_wait = false;
  request.may_exceed_limit = true;
  if (!pool.Allocate(request, made, report)) return false;
  pool.CountPinned(made->id, /*pinned=*/true, for_life);
  return true;
}

// With no lock held, after Take.
void WarnOfLimits(Pool& pool, const std::unique_ptr<OomReport>& report) {
  if (report == nullptr) return pool.WarnIfBeyondLimit();
  // XLA's own error, which comes next, does not say why.
  Warn([&] {
    return report->Text() +
           " It was asked for while a CUDA graph was captured, after which XLA "
           "cannot run this executable again: free memory of the device, then "
           "have it compiled anew (jax.clear_caches()).";
  });
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
  bool fits = true;
  {
    const Guard lock(mutex_);
    // The oldest that fits: the same one for the same request, since pins are
    // only added.
    const auto pin =
        std::find_if(pins_.begin(), pins_.end(), [&](const Pin& p) {
          return p.pool == &pool && p.index == index &&
                 p.allocation.bytes >= request.bytes &&
                 reinterpret_cast<uintptr_t>(p.allocation.ptr) %
                         request.alignment ==
                     0;
        });
    if (pin != pins_.end()) {
      pool.CountAgain(request);
      *made = pin->allocation;
      made->id = PinnedId(pool.index());
      return true;
    }
    // Room first, so that what is taken is kept.
    pins_.reserve(std::max(pins_.capacity(), std::bit_ceil(pins_.size() + 1)));
    fits = Take(pool, request, made, report, /*for_life=*/false);
    if (fits) pins_.push_back({&pool, index, *made});
  }
  WarnOfLimits(pool, *report);
  made->id = PinnedId(pool.index());
  return fits;
}

bool PinForLife(Pool& pool, const Pool::Request& request, Allocation* made,
                std::unique_ptr<OomReport>* report) {
  const bool fits = Take(pool, request, made, report, /*for_life=*/true);
  WarnOfLimits(pool, *report);
  if (!fits) return false;
  made->id = PinnedId(pool.index());
  static std::atomic<bool> said{false};
  if (!said.exchange(true)) {
    Warn([&] {
      return "jax_bfc: kernel '" + KernelName(request.kernel) +
             "' was captured into a CUDA graph and is not registered by "
             "jax_bfc.register_ffi_target: its scratch there is kept for the "
             "life of the process, at each capture anew. This is said once.";
    });
  }
  return true;
}

}  // namespace jax_bfc
