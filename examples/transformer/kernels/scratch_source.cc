#include "scratch_source.h"

#include <cstdlib>

namespace transformer {

namespace {
Gauge gauge;
}  // namespace

void* MallocScratch::AllocateBytes(std::optional<size_t> bytes) {
  if (!bytes) return nullptr;
  const size_t size = *bytes == 0 ? kAlignment : *bytes;
  void* data = std::aligned_alloc(kAlignment, size);
  if (data == nullptr) return nullptr;
  allocations_.push_back(data);
  bytes_ += size;
  gauge.Add(size);
  return data;
}

MallocScratch::~MallocScratch() {
  for (void* data : allocations_) std::free(data);
  gauge.Remove(bytes_);
}

}  // namespace transformer

extern "C" uint64_t transformer_malloc_peak_bytes() {
  return transformer::gauge.peak();
}
extern "C" void transformer_malloc_reset_peak() {
  transformer::gauge.ResetPeak();
}
