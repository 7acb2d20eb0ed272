#include "pool/kernel_table.h"

#include <array>
#include <cstdint>
#include <cstdio>
#include <map>
#include <utility>

#include "base/locks.h"

namespace jax_bfc {
namespace {

struct Table {
  Mutex mutex{LockRank::kKernels};
  std::map<std::string, KernelId, std::less<>> ids{
      {"(unregistered)", 0}, {"(other)", 1}, {"(python)", 2}};
  std::array<std::string, kMaxKernels> names{"(unregistered)", "(other)",
                                             "(python)"};
  std::array<size_t, kMaxKernels> label_starts{};  // in the name, or 0
  std::array<KernelId, kMaxKernels> owners{};      // of labels: the kernel
  std::atomic<uint32_t> count{3};
  std::array<std::atomic<int64_t>, kMaxKernels> call_sites{};
};

// Never destroyed: used by threads that outlive the interpreter.
Table& table() {
  static Table* const table = new Table;
  return *table;
}

// How many bytes of `text` from `i` on are one character of UTF-8; 0 where they
// are none (RFC 3629: no overlong form, no surrogate, none above U+10FFFF).
size_t CharacterBytes(std::string_view text, size_t i) {
  const auto byte = [&](size_t at) {
    return at < text.size() ? static_cast<uint8_t>(text[at]) : 0u;
  };
  const uint32_t first = byte(i);
  if (first < 0x80) return 1;
  const size_t bytes = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4) return 0;
  for (size_t k = 1; k < bytes; ++k) {
    if ((byte(i + k) & 0xC0) != 0x80) return 0;
  }
  const uint32_t second = byte(i + 1);
  if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) ||
      (first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F)) {
    return 0;
  }
  return bytes;
}

// A name as it is kept and shown: valid UTF-8 without control characters, which
// are written as \xNN like bytes that are no UTF-8, and not long.
std::string Clean(std::string_view text) {
  constexpr size_t kMostBytes = 256;
  std::string clean;
  for (size_t i = 0; i < text.size();) {
    if (clean.size() >= kMostBytes) return clean + "...";
    const size_t bytes = CharacterBytes(text, i);
    const auto first = static_cast<uint8_t>(text[i]);
    if (bytes == 0 || first < 0x20 || first == 0x7F) {
      char escaped[5];
      std::snprintf(escaped, sizeof(escaped), "\\x%02x", first);
      clean += escaped;
      ++i;
    } else {
      clean += text.substr(i, bytes);
      i += bytes;
    }
  }
  return clean;
}

// The row with this name, made if there is room.
// REQUIRES: the table's mutex is held.
KernelId Intern(Table& t, std::string name, KernelId owner,
                size_t label_start) {
  if (const auto found = t.ids.find(name); found != t.ids.end()) {
    return found->second;
  }
  const uint32_t id = t.count.load(std::memory_order_relaxed);
  if (id == kMaxKernels) return kOtherKernels;
  t.ids.emplace(name, id);  // the last that may throw
  t.names[id] = std::move(name);
  t.owners[id] = owner;
  t.label_starts[id] = label_start;
  t.count.store(id + 1, std::memory_order_release);
  return id;
}

}  // namespace

KernelId InternKernel(std::string_view name) {
  std::string clean = Clean(name);
  Table& t = table();
  const Guard lock(t.mutex);
  return Intern(t, std::move(clean), 0, 0);
}

KernelId InternLabel(KernelId kernel, std::string_view label) {
  const std::string clean = Clean(label);
  Table& t = table();
  const Guard lock(t.mutex);
  if (kernel >= kMaxKernels) kernel = kOtherKernels;
  if (t.label_starts[kernel] != 0) kernel = t.owners[kernel];
  if (clean.empty()) return kernel;
  const std::string& of = t.names[kernel];
  const KernelId id = Intern(t, of + ":" + clean, kernel, of.size() + 1);
  // Where there is no row left for the label, the kernel's own.
  return id == kOtherKernels ? kernel : id;
}

std::pair<std::string, std::string> KernelAndLabel(KernelId id) {
  Table& t = table();
  const Guard lock(t.mutex);
  if (id >= kMaxKernels) id = kOtherKernels;
  const std::string& name = t.names[id];
  const size_t start = t.label_starts[id];
  if (start == 0) return {name, ""};
  return {name.substr(0, start - 1), name.substr(start)};
}

std::string KernelName(KernelId id) {
  Table& t = table();
  const Guard lock(t.mutex);
  return t.names[id < kMaxKernels ? id : kOtherKernels];
}

uint32_t KernelCount() { return table().count.load(std::memory_order_acquire); }

std::atomic<int64_t>& KernelCallSites(KernelId id) {
  return table().call_sites[id];
}

void LockKernelTable() JAX_BFC_UNCHECKED { table().mutex.lock(); }
void UnlockKernelTable() JAX_BFC_UNCHECKED { table().mutex.unlock(); }

}  // namespace jax_bfc
