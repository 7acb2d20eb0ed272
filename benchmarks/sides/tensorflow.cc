// TensorFlow's own BFC allocator, over addresses without memory behind them.
#include <sys/mman.h>

#include <memory>
#include <utility>

#include "harness/side.h"
#include "xla/tsl/framework/allocator.h"
#include "xla/tsl/framework/bfc_allocator.h"

namespace jax_bfc::bench {
namespace {

class AddressesOnly : public tsl::SubAllocator {
 public:
  AddressesOnly() : SubAllocator({}, {}) {}

  void* Alloc(size_t, size_t bytes, size_t* received) override {
    *received = bytes;
    void* const base = mmap(nullptr, bytes, PROT_NONE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return base == MAP_FAILED ? nullptr : base;
  }
  void Free(void* base, size_t bytes) override { munmap(base, bytes); }
  bool SupportsCoalescing() const override { return true; }
};

tsl::BFCAllocator* From(void* self) {
  return static_cast<tsl::BFCAllocator*>(self);
}

}  // namespace

Side OpenSide(std::string_view name, size_t arena_bytes) {
  if (name != "tensorflow") return {};
  tsl::BFCAllocator::Options options;
  options.allow_growth = false;
  options.allow_retry_on_failure = false;
  auto allocator = std::make_unique<tsl::BFCAllocator>(
      std::make_unique<AddressesOnly>(), arena_bytes, "benchmark", options);
  return {
      allocator.release(),
      [](void* self, size_t bytes) {
        return Block{From(self)->AllocateRaw(256, bytes), 0};
      },
      [](void* self, Block block) { From(self)->DeallocateRaw(block.ptr); },
  };
}

}  // namespace jax_bfc::bench
