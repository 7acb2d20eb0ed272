// The pool, as handlers use it: any thread, front caches, statistics. It
// manages real host memory, committed and not touched.
#include "pool/pool.h"

#include <memory>

#include "harness/side.h"
#include "pool/budget.h"

namespace jax_bfc::bench {
namespace {

// Written when an allocation fails, which ends the worker.
std::unique_ptr<OomReport> report;

Pool* From(void* self) { return static_cast<Pool*>(self); }

}  // namespace

Side OpenSide(std::string_view name, size_t arena_bytes) {
  if (name != "pool") return {};
  static Budget budget(arena_bytes);
  PoolConfig config;
  config.limit_bytes = arena_bytes;
  static const auto pool = std::make_unique<Pool>(
      /*index=*/0, "cpu:0", config, &budget, /*reclaim=*/[] {});
  return {
      pool.get(),
      [](void* self, size_t bytes) {
        Allocation allocation;
        if (!From(self)->Allocate({/*kernel=*/0, bytes, kQuantum}, &allocation,
                                  &report)) {
          return Block{nullptr, 0};
        }
        return Block{allocation.ptr, allocation.id};
      },
      [](void* self, Block block) {
        if (!From(self)->Free(block.ptr, block.id)) Die("a bad free");
      },
  };
}

}  // namespace jax_bfc::bench
