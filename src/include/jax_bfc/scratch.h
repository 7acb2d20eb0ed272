// Scratch memory for XLA FFI handlers, from the arena of jax_bfc.
//
//   ffi::Error RowSoftmax(jax_bfc::ScratchAllocator scratch,
//                         ffi::Buffer<ffi::F32> x,
//                         ffi::ResultBuffer<ffi::F32> y) {
//     std::optional<float*> row_max = scratch.Allocate<float>(rows);
//     if (!row_max) return scratch.error();
//     ...
//   }
//   XLA_FFI_DEFINE_HANDLER_SYMBOL(
//       kRowSoftmax, RowSoftmax,
//       ffi::Ffi::Bind().Ctx<jax_bfc::ScratchAllocator>()
//                       .Arg<ffi::Buffer<ffi::F32>>()
//                       .Ret<ffi::Buffer<ffi::F32>>());
//
// Header only, nothing to link: the library is found in the process, where
// Python has imported jax_bfc. C++17. Works with the FFI headers of jaxlib
// 0.10 and newer. All of it has hidden visibility and a version in its
// namespace, so kernel libraries built against different versions share a
// process and its pools without sharing these definitions.
#ifndef JAX_BFC_SCRATCH_H_
#define JAX_BFC_SCRATCH_H_

#include <dlfcn.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "jax_bfc/c_api.h"
#include "xla/ffi/api/ffi.h"

#define JAX_BFC_HIDDEN __attribute__((visibility("hidden")))

namespace jax_bfc {
inline namespace v1_0 JAX_BFC_HIDDEN {

namespace internal {

// The least version of the C interface that has what this header calls.
inline constexpr uint32_t kApiMajor = 1;
inline constexpr uint32_t kApiMinor = 0;

// The library's table, or null and why not. Only a successful look-up is kept:
// jax_bfc may be imported later.
inline const jax_bfc_api* FindApi(std::string* why) {
  static std::atomic<const jax_bfc_api*> found{nullptr};
  if (const jax_bfc_api* api = found.load(std::memory_order_acquire)) {
    return api;
  }
  auto* get_api = reinterpret_cast<jax_bfc_get_api_function*>(
      dlsym(RTLD_DEFAULT, JAX_BFC_GET_API_SYMBOL));
  if (get_api == nullptr) {
    *why =
        "jax_bfc: scratch was asked for, but jax_bfc is not loaded in this "
        "process. Add `import jax_bfc` to the Python program before the kernel "
        "runs.";
    return nullptr;
  }
  const jax_bfc_api* api = get_api(kApiMajor, kApiMinor);
  if (api == nullptr) {
    *why = "jax_bfc: this kernel was built against version " +
           std::to_string(kApiMajor) + "." + std::to_string(kApiMinor) +
           " of the jax_bfc C interface, which the imported jax_bfc does not "
           "serve. Upgrade jax_bfc (pip install --upgrade jax_bfc), or build "
           "the kernel against the headers of the installed one "
           "(jax_bfc.include_dir()).";
    return nullptr;
  }
  found.store(api, std::memory_order_release);
  return api;
}

}  // namespace internal

// The part of a handler's own instantiate-stage state that ties its scratch to
// its call site and gives it a name:
//
//   struct MyState {
//     static ffi::TypeId id;
//     jax_bfc::CallSite call_site{"my_kernel"};
//   };
//
// and, in the execute handler, `scratch.Bind(state->call_site)`. Handlers
// without state of their own need none of this where they are registered by
// jax_bfc.register_ffi_target. May be shared by any number of threads.
class CallSite {
 public:
  explicit CallSite(std::string_view kernel_name) {
    std::string why;
    api_ = internal::FindApi(&why);
    if (api_ != nullptr) {
      api_->call_site_create(kernel_name.data(), kernel_name.size(), &id_);
    }
  }
  ~CallSite() {
    if (api_ != nullptr) api_->call_site_destroy(id_);
  }
  CallSite(const CallSite&) = delete;
  CallSite& operator=(const CallSite&) = delete;

 private:
  friend class ScratchAllocator;
  const jax_bfc_api* api_ = nullptr;
  uint64_t id_ = 0;
};

// Scratch for one call of a handler. What it allocates lives until it is
// destroyed: at the end of the handler where it is a parameter, or later where
// it is moved into a task that goes on after the handler returned a Future.
//
// A drop-in for xla::ffi::ScratchAllocator. One ScratchAllocator is not
// thread-safe; several are independent.
class ScratchAllocator {
 public:
  ScratchAllocator(ScratchAllocator&& other) noexcept { TakeFrom(other); }
  ScratchAllocator& operator=(ScratchAllocator&& other) noexcept {
    if (this != &other) {
      FreeAll();
      TakeFrom(other);
    }
    return *this;
  }
  ~ScratchAllocator() { FreeAll(); }

  // `size` bytes, uninitialised, at a multiple of `alignment` (a power of two
  // up to 2 MiB) and of 256 in any case. Nothing where it fails: error() says
  // why, and the handler should return that. A size of 0 is good.
  std::optional<void*> Allocate(size_t size, size_t alignment = 1) {
    jax_bfc_allocation allocation;
    const jax_bfc_status status =
        api_->allocate(&context_, size, alignment, &allocation);
    if (XLA_FFI_PREDICT_FALSE(status != JAX_BFC_OK)) {
      SetError(status, api_->last_error());
      return std::nullopt;
    }
    if (size_ < kInline) {
      inline_[size_] = allocation;
    } else {
      more_.push_back(allocation);
    }
    ++size_;
    return allocation.ptr;
  }

  // `count` uninitialised objects of type T.
  template <typename T>
  std::optional<T*> Allocate(size_t count) {
    static_assert(alignof(T) <= JAX_BFC_MIN_ALIGNMENT);
    if (count > std::numeric_limits<size_t>::max() / sizeof(T)) {
      SetError(JAX_BFC_INVALID_ARGUMENT,
               "jax_bfc: " + std::to_string(count) + " elements of " +
                   std::to_string(sizeof(T)) +
                   " bytes are more than a size_t can count.");
      return std::nullopt;
    }
    std::optional<void*> data = Allocate(count * sizeof(T));
    if (!data) return std::nullopt;
    return static_cast<T*>(*data);
  }

  // Frees one allocation before the end. False, with error() set, where `ptr`
  // is none of this object's.
  bool Free(void* ptr) {
    for (size_t i = size_; i-- > 0;) {
      if (At(i).ptr != ptr) continue;
      const jax_bfc_status status = api_->free(ptr, At(i).id);
      if (status != JAX_BFC_OK) {
        SetError(status, api_->last_error());
        return false;
      }
      At(i) = At(size_ - 1);
      if (size_ > kInline) more_.pop_back();
      --size_;
      return true;
    }
    SetError(JAX_BFC_INVALID_ARGUMENT,
             "jax_bfc: Free() of a pointer that this ScratchAllocator did not "
             "allocate, or has freed.");
    return false;
  }

  // What follows is counted under "<kernel>:<label>" in jax_bfc.kernel_stats().
  void SetLabel(std::string_view label) {
    Check(api_->set_label(&context_, label.data(), label.size()));
  }

  // What follows belongs to this call site, see CallSite.
  void Bind(const CallSite& call_site) {
    Check(api_->call_site_bind(call_site.id_, &context_));
  }

  // Why the last call failed that did; success if none has.
  xla::ffi::Error error() const {
    if (status_ == JAX_BFC_OK) return xla::ffi::Error::Success();
    return xla::ffi::Error(static_cast<XLA_FFI_Error_Code>(status_), message_);
  }

  // For the decoder below.
  static std::optional<ScratchAllocator> ForCall(
      const XLA_FFI_CallFrame* frame, xla::ffi::DiagnosticEngine& diagnostic) {
    std::string why;
    const jax_bfc_api* api = internal::FindApi(&why);
    if (XLA_FFI_PREDICT_FALSE(api == nullptr)) {
      diagnostic.Emit(std::move(why));
      return std::nullopt;
    }
    ScratchAllocator scratch(api);
    const jax_bfc_call_args args = {sizeof(args), frame->api, frame->ctx, frame,
                                    static_cast<int32_t>(frame->stage)};
    if (XLA_FFI_PREDICT_FALSE(api->begin_call(&args, &scratch.context_) !=
                              JAX_BFC_OK)) {
      diagnostic.Emit(api->last_error());
      return std::nullopt;
    }
    return scratch;
  }

 private:
  static constexpr size_t kInline = 4;

  explicit ScratchAllocator(const jax_bfc_api* api) : api_(api) {}

  jax_bfc_allocation& At(size_t i) {
    return i < kInline ? inline_[i] : more_[i - kInline];
  }

  void TakeFrom(ScratchAllocator& other) noexcept {
    api_ = other.api_;
    context_ = other.context_;
    size_ = std::exchange(other.size_, 0);
    for (size_t i = 0; i < size_ && i < kInline; ++i) {
      inline_[i] = other.inline_[i];
    }
    more_ = std::move(other.more_);
    other.more_.clear();
    status_ = other.status_;
    message_ = std::move(other.message_);
  }

  void FreeAll() noexcept {
    while (size_ > 0) {
      --size_;
      api_->free(At(size_).ptr, At(size_).id);
    }
    more_.clear();
  }

  void SetError(jax_bfc_status status, std::string message) {
    status_ = status;
    message_ = std::move(message);
  }
  void Check(jax_bfc_status status) {
    if (status != JAX_BFC_OK) SetError(status, api_->last_error());
  }

  const jax_bfc_api* api_;
  jax_bfc_context context_{};
  size_t size_ = 0;  // of the allocations, the first kInline of them inline_
  jax_bfc_allocation inline_[kInline];
  std::vector<jax_bfc_allocation> more_;
  jax_bfc_status status_ = JAX_BFC_OK;
  std::string message_;
};

}  // namespace v1_0 JAX_BFC_HIDDEN
}  // namespace jax_bfc

namespace xla::ffi {

template <>
struct CtxDecoding<jax_bfc::ScratchAllocator> {
  using Type = jax_bfc::ScratchAllocator;
};

namespace internal {

// Not by CtxDecoding, which does not see the call frame: it tells the stage and
// whose call it is.
template <>
struct Decode<CtxTag<jax_bfc::ScratchAllocator>> {
  static std::optional<jax_bfc::ScratchAllocator> call(
      DecodingOffsets&, DecodingContext& ctx, DiagnosticEngine& diagnostic) {
    return jax_bfc::ScratchAllocator::ForCall(ctx.call_frame, diagnostic);
  }
};

}  // namespace internal
}  // namespace xla::ffi

#undef JAX_BFC_HIDDEN

#endif  // JAX_BFC_SCRATCH_H_
