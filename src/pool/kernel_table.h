// The names that scratch is charged to, by small numbers that never change.
#ifndef JAX_BFC_POOL_KERNEL_TABLE_H_
#define JAX_BFC_POOL_KERNEL_TABLE_H_

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace jax_bfc {

using KernelId = uint32_t;
inline constexpr KernelId kUnregistered = 0;  // "(unregistered)"
inline constexpr KernelId kOtherKernels = 1;  // "(other)": the table is full
inline constexpr KernelId kPython = 2;        // "(python)": jax_bfc.scratch()
inline constexpr uint32_t kMaxKernels = 2048;

// Process-wide; entries are never removed. Thread-safe. Names are kept as valid
// UTF-8 of bounded length: other bytes and control characters are escaped.
KernelId InternKernel(std::string_view name);
// The row of a label of a kernel: "<kernel>:<label>". Given the row of a label,
// the new one takes its place; an empty one ends it.
KernelId InternLabel(KernelId kernel, std::string_view label);
std::string KernelName(KernelId id);
// The same in two parts; the label is empty where it has none.
std::pair<std::string, std::string> KernelAndLabel(KernelId id);
uint32_t KernelCount();

// Live call sites of the kernel: custom calls in executables that exist.
std::atomic<int64_t>& KernelCallSites(KernelId id);

// Around a fork: the table stays usable in the child.
void LockKernelTable();
void UnlockKernelTable();

}  // namespace jax_bfc

#endif  // JAX_BFC_POOL_KERNEL_TABLE_H_
