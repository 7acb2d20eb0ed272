#include "pool/peaks.h"

#include <algorithm>
#include <mutex>
#include <numeric>

namespace jax_bfc {

uint64_t Peaks::Open(const std::vector<int64_t>& in_use) {
  Block block{0, true, std::vector<int64_t>(kMaxKernels)};
  const std::lock_guard lock(lock_);
  if (blocks_.empty()) {
    by_kernel_ = in_use;
    by_kernel_.resize(kMaxKernels);
    kernels_ = static_cast<uint32_t>(in_use.size());
    in_use_ = std::accumulate(in_use.begin(), in_use.end(), int64_t{0});
  }
  block.bytes = in_use_;
  blocks_.emplace(++last_, std::move(block));
  return last_;
}

Peak Peaks::Read(uint64_t block) {
  Peak peak;
  const std::lock_guard lock(lock_);
  const auto found = blocks_.find(block);
  if (found == blocks_.end()) return peak;
  const Block& b = found->second;
  peak.bytes = static_cast<size_t>(b.bytes);
  const std::vector<int64_t>& by_kernel = b.rising ? by_kernel_ : b.by_kernel;
  for (uint32_t i = 0; i < kernels_; ++i) {
    if (by_kernel[i] != 0) {
      peak.by_kernel.emplace_back(i, static_cast<size_t>(by_kernel[i]));
    }
  }
  return peak;
}

bool Peaks::Close(uint64_t block) {
  const std::lock_guard lock(lock_);
  blocks_.erase(block);
  return !blocks_.empty();
}

void Peaks::Change(KernelId kernel, int64_t bytes) {
  const std::lock_guard lock(lock_);
  if (bytes < 0) {
    for (auto& [name, block] : blocks_) {
      if (!block.rising) continue;
      block.rising = false;
      std::copy_n(by_kernel_.begin(), kernels_, block.by_kernel.begin());
    }
  }
  kernels_ = std::max(kernels_, kernel + 1);
  by_kernel_[kernel] += bytes;
  in_use_ += bytes;
  for (auto& [name, block] : blocks_) {
    if (in_use_ <= block.bytes) continue;
    block.bytes = in_use_;
    block.rising = true;
  }
}

}  // namespace jax_bfc
