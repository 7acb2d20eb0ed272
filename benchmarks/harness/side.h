// One side of a comparison: an allocator behind a table of two functions.
//
// Every side pays for the same indirect call and the same check, so that
// differences between rows are differences between allocators. The side
// "empty" does nothing and shows what the harness itself costs.
//
// No side touches the memory that it hands out, nor does the harness.
#ifndef JAX_BFC_BENCHMARKS_HARNESS_SIDE_H_
#define JAX_BFC_BENCHMARKS_HARNESS_SIDE_H_

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace jax_bfc::bench {

// Sixteen bytes, so that it travels in two registers.
struct Block {
  void* ptr;    // null: the allocation failed
  uint64_t id;  // whatever the side needs to free it
};

struct Side {
  void* self;
  Block (*allocate)(void* self, size_t bytes);
  void (*free)(void* self, Block block);
};

// Makes the allocator `name` with room for `arena_bytes`, where it wants to
// know; a table of nulls for an unknown name. Each worker executable links one
// definition, calls it once, and never tears the allocator down.
Side OpenSide(std::string_view name, size_t arena_bytes);

// Ends the worker with a message.
[[noreturn]] void Die(const char* what);

}  // namespace jax_bfc::bench

#endif  // JAX_BFC_BENCHMARKS_HARNESS_SIDE_H_
