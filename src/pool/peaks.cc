#include "pool/peaks.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace jax_bfc {

uint64_t Peaks::Open(const std::vector<int64_t>& in_use) {
  std::map<uint64_t, Block> made;
  made.emplace(0, Block{0, true, std::vector<int64_t>(kMaxKernels)});
  auto node = made.extract(made.begin());
  std::vector<int64_t> by_kernel = in_use;
  by_kernel.resize(kMaxKernels);
  const Guard lock(lock_);
  if (blocks_.empty()) {
    by_kernel_.swap(by_kernel);
    kernels_ = static_cast<uint32_t>(in_use.size());
    in_use_ = std::accumulate(in_use.begin(), in_use.end(), int64_t{0});
  }
  node.mapped().bytes = in_use_;
  node.key() = ++last_;
  blocks_.insert(std::move(node));
  return last_;
}

Peak Peaks::Read(uint64_t block) {
  Peak peak;
  peak.by_kernel.reserve(kMaxKernels);
  const Guard lock(lock_);
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
  std::map<uint64_t, Block>::node_type closed;
  const Guard lock(lock_);
  closed = blocks_.extract(block);
  return !blocks_.empty();
}

void Peaks::Change(KernelId kernel, int64_t bytes) {
  const Guard lock(lock_);
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
