// How much memory of its own a process holds.
#ifndef JAX_BFC_BENCHMARKS_HARNESS_MEMORY_H_
#define JAX_BFC_BENCHMARKS_HARNESS_MEMORY_H_

#include <fcntl.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>

namespace jax_bfc::bench {

// Resident anonymous memory, walked page by page by the kernel: exact, where
// the counters of /proc/self/statm lag. The code pages of a library, which
// processes share, are not in it.
inline size_t AnonymousBytes() {
  static char text[4096];
  const int file = open("/proc/self/smaps_rollup", O_RDONLY);
  if (file < 0) return 0;
  const ssize_t length = read(file, text, sizeof(text) - 1);
  close(file);
  if (length <= 0) return 0;
  text[length] = '\0';
  const char* at = std::strstr(text, "Anonymous:");
  if (at == nullptr) return 0;
  return std::strtoull(at + std::strlen("Anonymous:"), nullptr, 10) << 10;
}

}  // namespace jax_bfc::bench

#endif  // JAX_BFC_BENCHMARKS_HARNESS_MEMORY_H_
