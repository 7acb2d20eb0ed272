// The exact high-water mark of a pool between two moments, and who held how
// much at it: what jax_bfc.peak() reads.
//
// While any block is open, every slot reports each hand-out and each free here,
// so the sum is exact for any number of threads, which a gauge's is not. The
// blocks share one running sum, and each keeps a peak of its own: they nest and
// overlap in any order, and leave the gauges alone.
//
// Cost: one lock for the pool per event, and a copy of the running sum when it
// falls from a new peak, O(kernels). Nothing while no block is open.
//
// Thread-safe. Memory is taken and given back without the lock.
#ifndef JAX_BFC_POOL_PEAKS_H_
#define JAX_BFC_POOL_PEAKS_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "base/locks.h"
#include "pool/kernel_table.h"

namespace jax_bfc {

struct Peak {
  size_t bytes = 0;
  // Who held some of it, in chunk bytes.
  std::vector<std::pair<KernelId, size_t>> by_kernel;
};

class Peaks {
 public:
  // Opens a block, which starts from what is in use: a name for it, never 0.
  // `in_use` has a number for each kernel and is read where no other is open.
  // REQUIRES: no slot reports meanwhile.
  uint64_t Open(const std::vector<int64_t>& in_use);
  // The peak so far, which is 0 where no block has this name.
  Peak Read(uint64_t block);
  // Whether any other is left.
  bool Close(uint64_t block);

  // A chunk was handed out, or freed (negative). Allocates no memory.
  void Change(KernelId kernel, int64_t bytes);

 private:
  struct Block {
    int64_t bytes;
    bool rising;  // the peak is now
    // At the peak, where that has passed.
    std::vector<int64_t> by_kernel;
  };
  ShortLock lock_{LockRank::kPeaks};
  uint64_t last_ = 0;
  int64_t in_use_ = 0;
  std::vector<int64_t> by_kernel_;  // kMaxKernels, from the first block on
  uint32_t kernels_ = 0;            // those beyond hold nothing
  std::map<uint64_t, Block> blocks_;
};

}  // namespace jax_bfc

#endif  // JAX_BFC_POOL_PEAKS_H_
