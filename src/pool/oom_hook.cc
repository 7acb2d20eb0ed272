#include "pool/oom_hook.h"

#include <atomic>

namespace jax_bfc {
namespace {

std::atomic<OomHook> the_hook{nullptr};
constinit thread_local bool in_hook = false;

}  // namespace

void SetOomHook(OomHook hook) {
  the_hook.store(hook, std::memory_order_release);
}

bool HasOomHook() {
  return the_hook.load(std::memory_order_acquire) != nullptr && !in_hook;
}

bool RunOomHook(const OomReport& report) {
  const OomHook hook = the_hook.load(std::memory_order_acquire);
  if (hook == nullptr || in_hook) return false;
  in_hook = true;
  const bool again = hook(report);
  in_hook = false;
  return again;
}

}  // namespace jax_bfc
