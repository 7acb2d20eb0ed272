#include "scratch_source.h"

#include <atomic>
#include <cstdlib>

namespace transformer {

namespace {
// What jax_bfc.memory_stats() shows by itself has to be counted by hand here.
std::atomic<size_t> bytes_in_use{0};
std::atomic<size_t> peak_bytes_in_use{0};
}  // namespace

void* MallocScratch::AllocateBytes(std::optional<size_t> bytes) {
  if (!bytes) return nullptr;
  const size_t size = *bytes == 0 ? kAlignment : *bytes;
  void* data = std::aligned_alloc(kAlignment, size);
  if (data == nullptr) return nullptr;
  allocations_.push_back(data);
  bytes_ += size;
  const size_t now = bytes_in_use.fetch_add(size) + size;
  size_t peak = peak_bytes_in_use.load();
  while (now > peak && !peak_bytes_in_use.compare_exchange_weak(peak, now)) {
  }
  return data;
}

MallocScratch::~MallocScratch() {
  for (void* data : allocations_) std::free(data);
  bytes_in_use.fetch_sub(bytes_);
}

}  // namespace transformer

extern "C" uint64_t transformer_malloc_peak_bytes() {
  return transformer::peak_bytes_in_use.load();
}
extern "C" void transformer_malloc_reset_peak() {
  transformer::peak_bytes_in_use = transformer::bytes_in_use.load();
}
