// A Budget is a number of bytes that several pools may map together.
#ifndef JAX_BFC_POOL_BUDGET_H_
#define JAX_BFC_POOL_BUDGET_H_

#include <algorithm>
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
  void TakeBeyondLimit(size_t bytes) {
    used_.fetch_add(bytes, std::memory_order_relaxed);
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

// A memory source that maps within a budget. The source behind it may be
// exchanged for one of another kind while others wait for the device or ask
// what it has left; both then live on.
class BudgetedSource : public MemorySource {
 public:
  BudgetedSource(MemorySource* source, Budget* budget)
      : source_(source), budget_(budget) {}

  // While one exists, what this thread maps may go beyond the budget, up to
  // what the device has; it counts all the same.
  class BeyondBudget {
   public:
    BeyondBudget() { beyond_budget_ = true; }
    ~BeyondBudget() { beyond_budget_ = false; }
    BeyondBudget(const BeyondBudget&) = delete;
    BeyondBudget& operator=(const BeyondBudget&) = delete;
  };

  const char* name() const override { return source()->name(); }
  size_t granularity() const override { return source()->granularity(); }
  bool has_virtual_memory() const override {
    return source()->has_virtual_memory();
  }
  size_t AvailableBytes() const override {
    const size_t device_bytes = source()->AvailableBytes();
    return beyond_budget_ ? device_bytes
                          : std::min(budget_->LeftBytes(), device_bytes);
  }
  size_t DeviceFreeBytes() const override {
    return source()->DeviceFreeBytes();
  }
  size_t LargestReservation() const override {
    return source()->LargestReservation();
  }
  bool runs_ahead() const override { return source()->runs_ahead(); }
  bool WaitIdle() override { return source()->WaitIdle(); }
  size_t budget_limit_bytes() const { return budget_->limit_bytes(); }

  uintptr_t Reserve(size_t bytes) override {
    if (has_virtual_memory()) return source()->Reserve(bytes);
    if (!Take(bytes)) return 0;
    const uintptr_t base = source()->Reserve(bytes);
    return Took(bytes, base != 0) ? base : 0;
  }
  void Release(uintptr_t base, size_t bytes) override {
    source()->Release(base, bytes);
    if (!has_virtual_memory()) GaveBack(bytes);
  }
  bool Map(uintptr_t address, size_t bytes) override {
    return Take(bytes) && Took(bytes, source()->Map(address, bytes));
  }
  bool Unmap(uintptr_t address, size_t bytes) override {
    if (!source()->Unmap(address, bytes)) return false;
    GaveBack(bytes);
    return true;
  }

  // Mapped through this source, and at most at once since the last reset.
  SharedGauge& mapped() { return mapped_; }

  // REQUIRES: nothing is mapped through it; the old source lives on.
  void set_source(MemorySource* source) {
    source_.store(source, std::memory_order_release);
  }

 private:
  MemorySource* source() const {
    return source_.load(std::memory_order_acquire);
  }
  bool Take(size_t bytes) {
    if (budget_->Take(bytes)) return true;
    if (beyond_budget_) budget_->TakeBeyondLimit(bytes);
    return beyond_budget_;
  }
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

  static constinit inline thread_local bool beyond_budget_ = false;
  std::atomic<MemorySource*> source_;
  Budget* const budget_;
  SharedGauge mapped_;
};

}  // namespace jax_bfc

#endif  // JAX_BFC_POOL_BUDGET_H_
