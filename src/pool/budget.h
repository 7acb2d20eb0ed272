// A Budget is a number of bytes that several pools may map together.
#ifndef JAX_BFC_POOL_BUDGET_H_
#define JAX_BFC_POOL_BUDGET_H_

#include <atomic>
#include <cstddef>

#include "core/memory_source.h"
#include "pool/gauge.h"

namespace jax_bfc {

// Thread-safe.
class Budget {
 public:
  explicit Budget(size_t limit_bytes) : limit_(limit_bytes) {}

  bool Take(size_t bytes) {
    size_t used = used_.load(std::memory_order_relaxed);
    do {
      const size_t limit = limit_.load(std::memory_order_relaxed);
      if (used > limit || bytes > limit - used) return false;
    } while (!used_.compare_exchange_weak(used, used + bytes,
                                          std::memory_order_relaxed));
    return true;
  }
  void GiveBack(size_t bytes) {
    used_.fetch_sub(bytes, std::memory_order_relaxed);
  }
  size_t LeftBytes() const {
    const size_t used = used_.load(std::memory_order_relaxed);
    const size_t limit = limit_.load(std::memory_order_relaxed);
    return used > limit ? 0 : limit - used;
  }
  size_t limit_bytes() const { return limit_.load(std::memory_order_relaxed); }
  void set_limit_bytes(size_t bytes) {
    limit_.store(bytes, std::memory_order_relaxed);
  }

 private:
  std::atomic<size_t> limit_;
  std::atomic<size_t> used_{0};
};

// A memory source that maps within a budget.
class BudgetedSource : public MemorySource {
 public:
  BudgetedSource(MemorySource* source, Budget* budget)
      : source_(source), budget_(budget) {}

  const char* name() const override { return source_->name(); }
  size_t granularity() const override { return source_->granularity(); }
  bool has_virtual_memory() const override {
    return source_->has_virtual_memory();
  }
  size_t AvailableBytes() const override { return budget_->LeftBytes(); }
  size_t DeviceFreeBytes() const override { return source_->DeviceFreeBytes(); }
  bool runs_ahead() const override { return source_->runs_ahead(); }
  bool WaitIdle() override { return source_->WaitIdle(); }
  size_t budget_limit_bytes() const { return budget_->limit_bytes(); }

  uintptr_t Reserve(size_t bytes) override {
    if (has_virtual_memory()) return source_->Reserve(bytes);
    if (!budget_->Take(bytes)) return 0;
    const uintptr_t base = source_->Reserve(bytes);
    return Took(bytes, base != 0) ? base : 0;
  }
  void Release(uintptr_t base, size_t bytes) override {
    source_->Release(base, bytes);
    if (!has_virtual_memory()) GaveBack(bytes);
  }
  bool Map(uintptr_t address, size_t bytes) override {
    return budget_->Take(bytes) && Took(bytes, source_->Map(address, bytes));
  }
  bool Unmap(uintptr_t address, size_t bytes) override {
    if (!source_->Unmap(address, bytes)) return false;
    GaveBack(bytes);
    return true;
  }

  // Mapped through this source, and at most at once since the last reset.
  SharedGauge& mapped() { return mapped_; }

  // REQUIRES: nothing is mapped through it, or `source` is of the same kind.
  void set_source(MemorySource* source) { source_ = source; }

 private:
  bool Took(size_t bytes, bool done) {
    if (!done) {
      budget_->GiveBack(bytes);
      return false;
    }
    const auto change = static_cast<int64_t>(bytes);
    mapped_.RaisePeak(mapped_.value.fetch_add(change) + change);
    return true;
  }
  void GaveBack(size_t bytes) {
    budget_->GiveBack(bytes);
    mapped_.value.fetch_sub(static_cast<int64_t>(bytes));
  }

  MemorySource* source_;
  Budget* const budget_;
  SharedGauge mapped_;
};

}  // namespace jax_bfc

#endif  // JAX_BFC_POOL_BUDGET_H_
