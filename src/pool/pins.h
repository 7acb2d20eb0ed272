// What CUDA graphs hold of the pools for one call site.
//
// A handler that is called under stream capture gives its addresses to a graph,
// which uses them at every replay without calling anybody. So an allocation
// under capture is pinned: nobody else gets any byte of it until the executable
// that owns the graph is gone, and the device has done what was submitted by
// then. It comes from the pool's lane without order, whose free memory is known
// to be idle.
//
// Captured again, a call site gets the same addresses for the same sizes. A
// size that fits none of its chunks gets a new one; the old ones stay, since
// an older graph may still use them.
//
// A capture that fails leaves XLA's executable unusable for ever. So what a
// graph wants is given beyond the pool's limit where the device has it, and a
// warning says so, once for each pool and as much again.
#ifndef JAX_BFC_POOL_PINS_H_
#define JAX_BFC_POOL_PINS_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "pool/pool.h"

namespace jax_bfc {

// The id of every pinned allocation of a pool: freeing one does nothing.
constexpr uint64_t PinnedId(uint32_t pool) {
  constexpr uint32_t kNoSlot = (1u << AllocationId::kSlotBits) - 1;
  static_assert(kNoSlot >= kSlots);
  return AllocationId{pool, kNoSlot, 0, 1}.Pack();
}

// The pins of one call site, on every device. Thread-safe; destroyed when
// nobody uses the call site any more.
class Pins {
 public:
  Pins() = default;
  Pins(const Pins&) = delete;
  Pins& operator=(const Pins&) = delete;
  // Makes no call of a driver and waits for nothing.
  ~Pins();

  // The allocation that is number `index` of a captured call; else as
  // Pool::Allocate.
  bool Get(Pool& pool, uint32_t index, const Pool::Request& request,
           Allocation* made, std::unique_ptr<OomReport>* report);

 private:
  struct Pin {
    Pool* pool;
    uint32_t index;
    Allocation allocation;
  };
  Mutex mutex_{LockRank::kGraphScratch};
  std::vector<Pin> pins_ JAX_BFC_GUARDED_BY(mutex_);
};

// The same for a captured call whose call site is not known: pinned for the
// process's life, which is said on stderr, once.
bool PinForLife(Pool& pool, const Pool::Request& request, Allocation* made,
                std::unique_ptr<OomReport>* report);

}  // namespace jax_bfc

#endif  // JAX_BFC_POOL_PINS_H_
