// The core alone: no lock, no cache, and a source of addresses without memory.
#include "core/arena.h"

#include <sys/mman.h>

#include "core/memory_source.h"
#include "harness/side.h"

namespace jax_bfc::bench {
namespace {

class AddressesOnly final : public MemorySource {
 public:
  const char* name() const override { return "fake"; }
  size_t granularity() const override { return size_t{2} << 20; }
  bool has_virtual_memory() const override { return true; }
  uintptr_t Reserve(size_t) override { return uintptr_t{1} << 45; }
  void Release(uintptr_t, size_t) override {}
  bool Map(uintptr_t, size_t) override { return true; }
  bool Unmap(uintptr_t, size_t) override { return true; }
};

Arena* From(void* self) { return static_cast<Arena*>(self); }

}  // namespace

Side OpenSide(std::string_view name, size_t arena_bytes) {
  if (name != "arena") return {};
  static AddressesOnly source;
  return {
      new Arena(&source, arena_bytes),
      [](void* self, size_t bytes) {
        const ChunkId id = From(self)->Allocate(bytes);
        if (id == kNoChunk) return Block{nullptr, 0};
        return Block{reinterpret_cast<void*>(From(self)->chunk(id).address),
                     id};
      },
      [](void* self, Block block) {
        From(self)->Free(static_cast<ChunkId>(block.id));
      },
  };
}

}  // namespace jax_bfc::bench
