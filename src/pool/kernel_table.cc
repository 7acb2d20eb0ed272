#include "pool/kernel_table.h"

#include <array>
#include <map>
#include <mutex>

namespace jax_bfc {
namespace {

struct Table {
  std::mutex mutex;
  std::map<std::string, KernelId, std::less<>> ids{
      {"(unregistered)", 0}, {"(other)", 1}, {"(python)", 2}};
  std::array<std::string, kMaxKernels> names{"(unregistered)", "(other)",
                                             "(python)"};
  std::array<size_t, kMaxKernels> label_starts{};  // in the name, or 0
  std::atomic<uint32_t> count{3};
  std::array<std::atomic<int64_t>, kMaxKernels> call_sites{};
};

// Never destroyed: used by threads that outlive the interpreter.
Table& table() {
  static Table* const table = new Table;
  return *table;
}

}  // namespace

KernelId InternKernel(std::string_view name) {
  Table& t = table();
  const std::lock_guard lock(t.mutex);
  if (const auto found = t.ids.find(name); found != t.ids.end()) {
    return found->second;
  }
  const uint32_t id = t.count.load(std::memory_order_relaxed);
  if (id == kMaxKernels) return kOtherKernels;
  t.names[id] = name;
  t.ids.emplace(name, id);
  t.count.store(id + 1, std::memory_order_release);
  return id;
}

KernelId InternLabel(KernelId kernel, std::string_view label) {
  const std::string of = KernelName(kernel);
  const KernelId id = InternKernel(of + ":" + std::string(label));
  if (id != kOtherKernels) {
    Table& t = table();
    const std::lock_guard lock(t.mutex);
    t.label_starts[id] = of.size() + 1;
  }
  return id;
}

std::pair<std::string, std::string> KernelAndLabel(KernelId id) {
  Table& t = table();
  const std::lock_guard lock(t.mutex);
  if (id >= kMaxKernels) id = kOtherKernels;
  const std::string& name = t.names[id];
  const size_t start = t.label_starts[id];
  if (start == 0) return {name, ""};
  return {name.substr(0, start - 1), name.substr(start)};
}

std::string KernelName(KernelId id) {
  Table& t = table();
  const std::lock_guard lock(t.mutex);
  return t.names[id < kMaxKernels ? id : kOtherKernels];
}

uint32_t KernelCount() { return table().count.load(std::memory_order_acquire); }

std::atomic<int64_t>& KernelCallSites(KernelId id) {
  return table().call_sites[id];
}

void LockKernelTable() { table().mutex.lock(); }
void UnlockKernelTable() { table().mutex.unlock(); }

}  // namespace jax_bfc
