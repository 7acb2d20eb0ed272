#include "ffi/targets.h"

#include <pthread.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <utility>

#include "ffi/call_site.h"

namespace jax_bfc {
namespace {

struct Entry {
  KernelId kernel;
  XLA_FFI_Handler* execute;
  std::atomic<bool> may_be_captured{true};
};

// Written before a function that reads its entry is handed out.
std::array<Entry, kMaxTargets> entries;
int entries_used = 0;

// Whose frame this thread is in.
struct CurrentFrame {
  const void* frame = nullptr;
  Caller caller;
};
constinit thread_local CurrentFrame current_frame;

XLA_FFI_Metadata* MetadataOf(const XLA_FFI_CallFrame* frame) {
  if (frame->extension_start == nullptr ||
      frame->extension_start->type != XLA_FFI_Extension_Metadata) {
    return nullptr;
  }
  return reinterpret_cast<XLA_FFI_Metadata_Extension*>(frame->extension_start)
      ->metadata;
}

XLA_FFI_Error* Execute(Entry& entry, XLA_FFI_CallFrame* frame) {
  const Caller caller{entry.kernel,
                      entry.may_be_captured.load(std::memory_order_relaxed)};
  const CurrentFrame outer =
      std::exchange(current_frame, CurrentFrame{frame, caller});
  XLA_FFI_Error* error = entry.execute(frame);
  current_frame = outer;
  const XLA_FFI_Metadata* metadata = MetadataOf(frame);
  if (metadata != nullptr && error == nullptr) [[unlikely]] {
    entry.may_be_captured =
        (metadata->traits & XLA_FFI_HANDLER_TRAITS_COMMAND_BUFFER_COMPATIBLE) !=
        0;
  }
  return error;
}

XLA_FFI_Error* Instantiate(const Entry& entry, XLA_FFI_CallFrame* frame) {
  XLA_FFI_Metadata* metadata = MetadataOf(frame);
  if (metadata == nullptr) return SetCallSite(frame, entry.kernel);
  // XLA asks what this handler is before it registers it, and wants the type
  // of its state registered by then. JAX's own way to do that comes too late
  // where no backend exists yet; here it is always in time.
  metadata->api_version.major_version = XLA_FFI_API_MAJOR;
  metadata->api_version.minor_version = XLA_FFI_API_MINOR;
  metadata->traits = 0;
  return RegisterCallSiteType(frame->api, &metadata->state_type_id);
}

template <size_t index>
XLA_FFI_Error* ExecuteAt(XLA_FFI_CallFrame* frame) {
  return Execute(entries[index], frame);
}
template <size_t index>
XLA_FFI_Error* InstantiateAt(XLA_FFI_CallFrame* frame) {
  return Instantiate(entries[index], frame);
}

template <size_t... indices>
constexpr std::array<Target, sizeof...(indices)> MakeTable(
    std::index_sequence<indices...>) {
  return {Target{InstantiateAt<indices>, ExecuteAt<indices>}...};
}
constexpr std::array<Target, kMaxTargets> kTargets =
    MakeTable(std::make_index_sequence<kMaxTargets>());

}  // namespace

std::optional<Target> MakeTarget(std::string_view name,
                                 XLA_FFI_Handler* execute) {
  const KernelId kernel = InternKernel(name);
  static const int registered =
      pthread_atfork([]() JAX_BFC_UNCHECKED { ffi_mutex.lock(); },
                     []() JAX_BFC_UNCHECKED { ffi_mutex.unlock(); },
                     []() JAX_BFC_UNCHECKED { ffi_mutex.unlock(); });
  static_cast<void>(registered);
  const Guard lock(ffi_mutex);
  for (int i = 0; i < entries_used; ++i) {
    if (entries[i].kernel == kernel && entries[i].execute == execute) {
      return kTargets[i];
    }
  }
  if (entries_used == kMaxTargets) return std::nullopt;
  entries[entries_used].kernel = kernel;
  entries[entries_used].execute = execute;
  return kTargets[entries_used++];
}

Caller CallerOfFrame(const void* frame) {
  return frame != nullptr && current_frame.frame == frame ? current_frame.caller
                                                          : Caller{};
}

}  // namespace jax_bfc
