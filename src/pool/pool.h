// A Pool is all the scratch of one device: thread-safe, never destroyed.
//
// Each thread has a slot with a front cache: chunks that it freed, found again
// by the next request of the same size. What the cache cannot serve comes from
// the arena, under one mutex. A slot owns what it handed out until it goes back
// to the arena, whoever frees it, so that its counters are exact.
//
// When a request does not fit: flush the caches, grow, reclaim from the other
// pools of the same budget and grow, fail with a report.
//
// Locks: a slot's, then the arena's; at most one slot at a time, but for
// those who take all in order of their index. None is held in a callback.
#ifndef JAX_BFC_POOL_POOL_H_
#define JAX_BFC_POOL_POOL_H_
// (being written; the public surface that benchmarks and tests use:)
//
//   namespace jax_bfc {
//   struct Allocation { void* ptr; size_t bytes; uint64_t id; };
//   class Pool {
//     // nullopt -> did not fit; *report has the text
//     std::optional<Allocation> Allocate(uint32_t kernel, size_t bytes,
//                                        size_t alignment, std::string* report);
//     bool Free(void* ptr, uint64_t id);   // false: not in use here
//     size_t Trim(); PoolStats stats(); ...
//   };
//   Pool& HostPool(int ordinal);   // registry.h
#endif  // JAX_BFC_POOL_POOL_H_
