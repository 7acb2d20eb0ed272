// Handlers that take scratch in every way that there is.
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "jax_bfc/scratch.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

// y = 2 x by way of scratch, filled and read back with a pause between, so that
// two calls that were given the same bytes spoil each other's results.
void DoubleThrough(float* scratch, const float* x, float* y, size_t n) {
  for (size_t i = 0; i < n; ++i) scratch[i] = 2 * x[i];
  std::this_thread::sleep_for(std::chrono::microseconds(50));
  for (size_t i = 0; i < n; ++i) y[i] = scratch[i];
}

ffi::Error Double(jax_bfc::ScratchAllocator scratch, ffi::Buffer<ffi::F32> x,
                  ffi::ResultBuffer<ffi::F32> y) {
  const size_t n = x.element_count();
  std::optional<float*> data = scratch.Allocate<float>(n);
  if (!data) return scratch.error();
  DoubleThrough(*data, x.typed_data(), y->typed_data(), n);
  return ffi::Error::Success();
}

// Allocates `count` times `size` bytes; where[i] are the addresses.
ffi::Error Addresses(jax_bfc::ScratchAllocator scratch, int64_t size,
                     int64_t alignment, ffi::ResultBuffer<ffi::S64> where) {
  for (size_t i = 0; i < where->element_count(); ++i) {
    std::optional<void*> data = scratch.Allocate(
        static_cast<size_t>(size), static_cast<size_t>(alignment));
    if (!data) return scratch.error();
    where->typed_data()[i] = reinterpret_cast<int64_t>(*data);
  }
  return ffi::Error::Success();
}

// Returns before its work is done, and takes the scratch along.
ffi::Future Async(ffi::ThreadPool pool, jax_bfc::ScratchAllocator scratch,
                  ffi::Buffer<ffi::F32> x, ffi::ResultBuffer<ffi::F32> y) {
  auto promise = std::make_shared<ffi::Promise>();
  ffi::Future future(*promise);
  auto shared = std::make_shared<jax_bfc::ScratchAllocator>(std::move(scratch));
  pool.Schedule([promise, shared, from = x.typed_data(), to = y->typed_data(),
                 n = x.element_count()]() mutable {
    std::optional<float*> data = shared->Allocate<float>(n);
    if (!data) {
      promise->SetError(shared->error());
      return;
    }
    DoubleThrough(*data, from, to, n);
    shared.reset();  // before the result is there, so that tests see it freed
    promise->SetAvailable();
  });
  return future;
}

// Labels, Free, several allocations, moves.
ffi::Error Everything(jax_bfc::ScratchAllocator given, ffi::Buffer<ffi::F32> x,
                      ffi::ResultBuffer<ffi::F32> y) {
  jax_bfc::ScratchAllocator scratch = std::move(given);
  const size_t n = x.element_count();
  void* kept[10];
  for (void*& p : kept) {
    std::optional<void*> data = scratch.Allocate(1000, 4096);
    if (!data) return scratch.error();
    if (reinterpret_cast<uintptr_t>(*data) % 4096 != 0) {
      return ffi::Error::Internal("misaligned");
    }
    std::memset(*data, 0xAB, 1000);
    p = *data;
  }
  for (int i : {9, 0, 5, 3}) {
    if (!scratch.Free(kept[i])) return scratch.error();
  }
  if (scratch.Free(kept[9])) return ffi::Error::Internal("freed twice");
  int local;
  if (scratch.Free(&local)) return ffi::Error::Internal("freed a stranger");
  if (scratch.Allocate<double>(SIZE_MAX / 4)) {
    return ffi::Error::Internal("the product overflowed");
  }
  if (scratch.error().message().find("more than a size_t can count") ==
      std::string::npos) {
    return scratch.error();
  }
  scratch.SetLabel("labelled");
  std::optional<void*> data = scratch.Allocate(n * sizeof(float));
  if (!data) return scratch.error();
  DoubleThrough(static_cast<float*>(*data), x.typed_data(), y->typed_data(), n);
  return ffi::Error::Success();
}

// State of the author's own, with a call site in it.
struct State {
  static ffi::TypeId id;
  static ffi::TypeInfo info;
  jax_bfc::CallSite call_site{"own_state_kernel"};
  float factor = 2;
};
ffi::TypeId State::id = {};
ffi::TypeInfo State::info = ffi::MakeTypeInfo<State>();

ffi::ErrorOr<std::unique_ptr<State>> MakeState() {
  return ffi::ErrorOr<std::unique_ptr<State>>(std::make_unique<State>());
}

ffi::Error WithState(State* state, jax_bfc::ScratchAllocator scratch,
                     ffi::Buffer<ffi::F32> x, ffi::ResultBuffer<ffi::F32> y) {
  scratch.Bind(state->call_site);
  const size_t n = x.element_count();
  std::optional<float*> data = scratch.Allocate<float>(n);
  if (!data) return scratch.error();
  DoubleThrough(*data, x.typed_data(), y->typed_data(), n);
  return ffi::Error::Success();
}

// Scratch where there can be none.
ffi::Error InInstantiate(jax_bfc::ScratchAllocator) {
  return ffi::Error::Success();
}

ffi::Error Nothing(ffi::Buffer<ffi::F32>, ffi::ResultBuffer<ffi::F32>) {
  return ffi::Error::Success();
}

}  // namespace

#define UNARY .Arg<ffi::Buffer<ffi::F32>>().Ret<ffi::Buffer<ffi::F32>>()
#define SCRATCH Ctx<jax_bfc::ScratchAllocator>()

XLA_FFI_DEFINE_HANDLER_SYMBOL(kDouble, Double, ffi::Ffi::Bind().SCRATCH UNARY);
XLA_FFI_DEFINE_HANDLER_SYMBOL(kAddresses, Addresses,
                              ffi::Ffi::Bind()
                                  .SCRATCH.Attr<int64_t>("size")
                                  .Attr<int64_t>("alignment")
                                  .Ret<ffi::Buffer<ffi::S64>>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    kAsync, Async, ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().SCRATCH UNARY);
XLA_FFI_DEFINE_HANDLER_SYMBOL(kEverything, Everything,
                              ffi::Ffi::Bind().SCRATCH UNARY);
XLA_FFI_DEFINE_HANDLER_SYMBOL(kMakeState, MakeState,
                              ffi::Ffi::BindInstantiate());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    kWithState, WithState,
    ffi::Ffi::Bind().Ctx<ffi::State<State>>().SCRATCH UNARY);
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    kInInstantiate, InInstantiate,
    ffi::Ffi::Bind<ffi::ExecutionStage::kInstantiate>().SCRATCH);
XLA_FFI_DEFINE_HANDLER_SYMBOL(kNothing, Nothing, ffi::Ffi::Bind() UNARY);

extern "C" void* StateTypeId() { return &State::id; }
extern "C" void* StateTypeInfo() { return &State::info; }
