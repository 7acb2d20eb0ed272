// The workloads. Each keeps a steady state, so that any number of pairs may be
// run at any time; a pair is one allocation and one free.
#ifndef JAX_BFC_BENCHMARKS_HARNESS_WORKLOAD_H_
#define JAX_BFC_BENCHMARKS_HARNESS_WORKLOAD_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "harness/probe.h"
#include "harness/side.h"

namespace jax_bfc::bench {

class Workload {
 public:
  virtual ~Workload() = default;

  // Runs at least `pairs` pairs; how many it ran.
  virtual size_t Run(size_t pairs, DirectProbe& probe) = 0;
  virtual size_t Run(size_t pairs, TimedProbe& probe) = 0;

  // Back to the first operation, in the state that it was in then; false where
  // the workload cannot.
  virtual bool Restart() { return false; }
};

// same_size            1 MiB, taken and given back
// lifo                 64 KiB, 1, 4 and 16 MiB, given back in reverse
// churn                1,000 live of 256 B to 64 MiB, log-uniform; a random one
//                      is replaced
// free_chunks          `n` free chunks of one bin lie between chunks in use,
// all
//                      smaller than the one request
// free_chunks_varied   the same, and no two successive requests are of one
//                      size: what a cache by size cannot answer
// mixed                `n` free chunks of 512 B to 64 KiB lie between chunks in
//                      use; 64 live of 256 B to 64 KiB, the oldest is replaced
//
// Null for any other name. What it needs is allocated from `side` at once.
std::unique_ptr<Workload> MakeWorkload(std::string_view name, size_t n,
                                       const Side& side, uint64_t seed);

}  // namespace jax_bfc::bench

#endif  // JAX_BFC_BENCHMARKS_HARNESS_WORKLOAD_H_
