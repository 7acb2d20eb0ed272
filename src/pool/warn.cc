#include "pool/warn.h"

#include <atomic>
#include <cstdio>

namespace jax_bfc {
namespace {
std::atomic<WarnHook> the_hook{nullptr};
}

void SetWarnHook(WarnHook hook) {
  the_hook.store(hook, std::memory_order_release);
}

void internal::WarnOf(const std::string& text) {
  if (const WarnHook hook = the_hook.load(std::memory_order_acquire)) {
    hook(text);
  } else {
    std::fprintf(stderr, "%s\n", text.c_str());
  }
}

}  // namespace jax_bfc
