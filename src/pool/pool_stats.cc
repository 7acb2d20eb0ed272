// What a Pool says of itself.
#include <algorithm>
#include <utility>

#include "core/size_class.h"
#include "pool/pool.h"
#include "pool/warn.h"

namespace jax_bfc {

PoolStats Pool::Stats() {
  PoolStats stats;
  GaugeSum in_use;
  size_t cached = 0;
  const Locked locked(this);
  for (const Slot* slot : locked.slots()) {
    in_use.Add(slot->in_use);
    stats.requested_bytes += slot->requested_bytes;
    stats.cached_bytes += slot->cached_bytes + slot->deferred_bytes;
    stats.cache_hits += slot->cache_hits;
    cached += slot->cached + slot->deferred_chunks;
    for (uint32_t i = 0; i < slot->cached; ++i) {
      stats.largest_free_bytes =
          std::max(stats.largest_free_bytes, slot->cache_bytes[i]);
    }
    for (const KernelCounters& kernel : slot->kernels) {
      stats.allocations += kernel.allocations;
      stats.failures += kernel.failures;
      stats.total_bytes += kernel.total_bytes;
      stats.largest_bytes = std::max(stats.largest_bytes, kernel.largest_bytes);
    }
  }
  stats.bytes_in_use = in_use.Value(in_use_);
  stats.pinned_bytes =
      static_cast<size_t>(pinned_.load(std::memory_order_relaxed));
  stats.pinned_for_life_bytes =
      static_cast<size_t>(pinned_for_life_.load(std::memory_order_relaxed));
  stats.peak_bytes_in_use = in_use.Peak(in_use_);
  stats.limit_bytes =
      std::min(config_.limit_bytes, source_.budget_limit_bytes());
  for (const Lane& lane : lanes_) {
    if (lane.arena == nullptr) continue;
    stats.arena += lane.arena->stats();
    stats.cached_bytes += lane.waiting_bytes;
    cached += lane.waiting_chunks;
  }
  // With what is on its way between an arena and a slot.
  stats.live = stats.arena.chunks_in_use - cached;
  stats.arena.peak_mapped_bytes =
      static_cast<size_t>(source_.mapped().peak.load());
  stats.largest_free_bytes =
      std::max(stats.largest_free_bytes, stats.arena.largest_free_bytes);
  return stats;
}

std::vector<KernelStats> Pool::Kernels() {
  const uint32_t count = KernelCount();
  std::vector<KernelStats> kernels(count);
  std::vector<GaugeSum> in_use(count);
  {
    const Locked locked(this);
    for (const Slot* slot : locked.slots()) {
      for (size_t i = 0; i < slot->kernels.size() && i < count; ++i) {
        const KernelCounters& from = slot->kernels[i];
        KernelStats& to = kernels[i];
        to.calls += from.calls;
        to.allocations += from.allocations;
        to.total_bytes += from.total_bytes;
        to.largest_bytes = std::max(to.largest_bytes, from.largest_bytes);
        to.failures += from.failures;
        in_use[i].Add(from.in_use);
      }
    }
    for (uint32_t i = 0; i < count; ++i) {
      kernels[i].bytes_in_use = in_use[i].Value(kernels_in_use_[i]);
      kernels[i].peak_bytes_in_use = in_use[i].Peak(kernels_in_use_[i]);
      kernels[i].pinned_bytes = static_cast<size_t>(
          kernels_pinned_[i].load(std::memory_order_relaxed));
    }
  }
  std::vector<KernelStats> used;
  for (uint32_t i = 0; i < count; ++i) {
    KernelStats& kernel = kernels[i];
    kernel.call_sites = KernelCallSites(i).load(std::memory_order_relaxed);
    if (kernel.calls == 0 && kernel.call_sites == 0) continue;
    kernel.name = KernelName(i);
    used.push_back(std::move(kernel));
  }
  return used;
}

void Pool::CountPinned(uint64_t id, bool pinned, bool for_life) {
  const AllocationId parts = AllocationId::Unpack(id);
  Slot& slot = *SlotFor(parts.slot);
  std::unique_lock lock(slot.lock);
  Entry& entry = slot.entries[parts.entry];
  entry.pinned = pinned;
  const KernelId kernel = entry.kernel;
  const size_t chunk_bytes = entry.bytes;
  lock.unlock();
  RecordRare(pinned ? EventKind::kPin : EventKind::kUnpin, kernel, 0,
             chunk_bytes);
  const auto bytes = static_cast<int64_t>(chunk_bytes) * (pinned ? 1 : -1);
  kernels_pinned_[kernel].fetch_add(bytes, std::memory_order_relaxed);
  pinned_.fetch_add(bytes, std::memory_order_relaxed);
  if (for_life) pinned_for_life_.fetch_add(bytes, std::memory_order_relaxed);
}

void Pool::CountAgain(const Request& request) {
  Slot& slot = *SlotFor(kNoStream);
  const Guard lock(slot.lock);
  KernelCounters& counters = slot.Counters(request.kernel);
  counters.calls += request.new_call;
  ++counters.allocations;
  counters.total_bytes += request.bytes;
}

void Pool::ResetPeaks() {
  const Locked locked(this);
  for (Slot* slot : locked.slots()) {
    slot->in_use.Publish(in_use_);
    for (size_t i = 0; i < slot->kernels.size(); ++i) {
      slot->kernels[i].in_use.Publish(kernels_in_use_[i]);
      slot->kernels[i].largest_bytes = 0;
    }
  }
  in_use_.peak = in_use_.value.load();
  for (uint32_t i = 0; i < kMaxKernels; ++i) {
    kernels_in_use_[i].peak = kernels_in_use_[i].value.load();
  }
  source_.mapped().peak = source_.mapped().value.load();
  for (Lane& lane : lanes_) {
    if (lane.arena != nullptr) lane.arena->ResetPeaks();
  }
}

OomReport Pool::Report(const Request& request) {
  const PoolStats stats = Stats();
  OomReport report;
  report.kernel = KernelName(request.kernel);
  report.device = device_;
  report.requested_bytes = request.bytes;
  report.chunk_bytes = RoundedBytes(request.bytes);
  report.alignment = request.alignment;
  report.limit_bytes = stats.limit_bytes;
  report.mapped_bytes = stats.arena.mapped_bytes;
  report.bytes_in_use = stats.bytes_in_use;
  report.largest_free_bytes = stats.largest_free_bytes;
  report.device_available_bytes = source_.DeviceFreeBytes();
  report.could_not_wait = could_not_wait_.exchange(false);
  for (const KernelStats& k : Kernels()) {
    if (k.bytes_in_use > 0) report.holders.emplace_back(k.name, k.bytes_in_use);
  }
  std::stable_sort(
      report.holders.begin(), report.holders.end(),
      [](const auto& a, const auto& b) { return a.second > b.second; });
  if (report.holders.size() > 5) report.holders.resize(5);
  return report;
}

void Pool::WarnIfBeyondLimit() {
  const auto mapped = static_cast<size_t>(
      source_.mapped().value.load(std::memory_order_relaxed));
  const size_t limit = source_.budget_limit_bytes();
  if (mapped <= limit) return;
  size_t warned = warned_of_mapped_.load(std::memory_order_relaxed);
  if (mapped / 2 < warned) return;
  if (!warned_of_mapped_.compare_exchange_strong(warned, mapped)) return;
  Warn([&] {
    return "jax_bfc: " + device_ + " has " + WithCommas(mapped) +
           " bytes of scratch mapped, beyond its limit of " +
           WithCommas(limit) + ": CUDA graphs hold " +
           WithCommas(
               static_cast<size_t>(pinned_.load(std::memory_order_relaxed))) +
           ", and XLA cannot go on after a capture that fails. Raise "
           "limit_bytes or memory_fraction in jax_bfc.configure(), or drop "
           "programs that are not needed (jax.clear_caches()).";
  });
}

void Pool::KeepReport(const OomReport& report) {
  const Guard lock(report_mutex_);
  last_oom_report_ = report.Text();
}

std::string Pool::LastOomReport() {
  const Guard lock(report_mutex_);
  return last_oom_report_;
}

}  // namespace jax_bfc
