// The malloc of the process: glibc's, or one that was preloaded.
//
//   malloc          as it comes
//   malloc_raised   glibc told to keep its memory: nothing is mapped apart, and
//                   nothing is given back
#include <malloc.h>

#include <cstdlib>

#include "harness/side.h"

namespace jax_bfc::bench {

Side OpenSide(std::string_view name, size_t) {
  if (name == "malloc_raised") {
    // glibc takes an int; what is larger than any request switches both off.
    mallopt(M_MMAP_MAX, 0);
    mallopt(M_TRIM_THRESHOLD, 2'000'000'000);
    mallopt(M_TOP_PAD, 64 << 20);
  } else if (name != "malloc") {
    return {};
  }
  return {
      nullptr,
      [](void*, size_t bytes) { return Block{std::malloc(bytes), 0}; },
      [](void*, Block block) { std::free(block.ptr); },
  };
}

}  // namespace jax_bfc::bench
