// CUDA handlers that XLA may capture into graphs, and that look after what is in
// their scratch: each writes a pattern of its call site and step, waits for a
// while, and counts the words that are another's by then.
//
// They pass on a state of two words: the step, and the words found wrong so far.
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "hold.h"
#include "jax_bfc/scratch.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

using State = ffi::Buffer<ffi::U32>;
using NewState = ffi::ResultBuffer<ffi::U32>;

__device__ uint32_t Word(uint32_t site, uint32_t step, size_t i) {
  return (site * 0x9E3779B9u) ^ (step * 0x85EBCA6Bu) ^
         (static_cast<uint32_t>(i) * 0xC2B2AE35u);
}

__global__ void PassOn(const uint32_t* state, uint32_t* result) {
  result[0] = state[0];
  result[1] = state[1];
}

__global__ void Write(uint32_t* data, size_t words, uint32_t site,
                      const uint32_t* state) {
  const uint32_t step = state[0];
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < words;
       i += size_t{gridDim.x} * blockDim.x) {
    data[i] = Word(site, step, i);
  }
}

__global__ void Verify(const uint32_t* data, size_t words, uint32_t site,
                       const uint32_t* state, uint32_t* result) {
  const uint32_t step = state[0];
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < words;
       i += size_t{gridDim.x} * blockDim.x) {
    if (data[i] != Word(site, step, i)) atomicAdd(&result[1], 1u);
  }
}

__global__ void Wait(int64_t nanoseconds) {
  int64_t start;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
  for (int64_t now = start; now - start < nanoseconds;) {
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  }
}

__global__ void Spoil(uint32_t* data, size_t words) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < words;
       i += size_t{gridDim.x} * blockDim.x) {
    data[i] = 0xFFFFFFFFu;
  }
}

constexpr int kBlocks = 16;
constexpr int kThreads = 256;
// In place of a pause: until the gate of hold.h opens.
constexpr int64_t kUntilOpened = -1;

ffi::Error Status(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return ffi::Error::Success();
  return ffi::Error::Internal(std::string(call) + ": " +
                              cudaGetErrorString(error));
}

ffi::Error NoScratch(const jax_bfc::ScratchAllocator& scratch) {
  return scratch.error();
}
ffi::Error NoScratch(const ffi::ScratchAllocator&) {
  return ffi::Error(ffi::ErrorCode::kResourceExhausted, "XLA has no scratch");
}

// Handler calls so far: outside of captures, and under one.
std::atomic<long long> calls[2];

std::mutex mutex;
// Where the allocations of each call site were in captures. Guarded by `mutex`.
std::map<int64_t, std::set<void*>>& Captured() {
  static auto* const captured = new std::map<int64_t, std::set<void*>>;
  return *captured;
}

ffi::Error CountCall(cudaStream_t stream, bool* captured) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(stream, &status);
  *captured = status != cudaStreamCaptureStatusNone;
  ++calls[*captured ? 1 : 0];
  return Status(error, "cudaStreamIsCapturing");
}

void NoteAddress(bool captured, int64_t site, void* address) {
  if (!captured) return;
  const std::lock_guard lock(mutex);
  Captured()[site].insert(address);
}

template <typename Scratch>
ffi::Error Layer(cudaStream_t stream, Scratch scratch, int64_t nbytes,
                 int64_t site, int64_t pause_ns, State state, NewState result) {
  bool captured = false;
  if (ffi::Error error = CountCall(stream, &captured); error.failure()) {
    return error;
  }
  std::optional<void*> memory = scratch.Allocate(static_cast<size_t>(nbytes));
  if (!memory) return NoScratch(scratch);
  NoteAddress(captured, site, *memory);
  auto* data = static_cast<uint32_t*>(*memory);
  const size_t words = static_cast<size_t>(nbytes) / 4;
  const uint32_t id = static_cast<uint32_t>(site);
  PassOn<<<1, 1, 0, stream>>>(state.typed_data(), result->typed_data());
  Write<<<kBlocks, kThreads, 0, stream>>>(data, words, id, state.typed_data());
  if (pause_ns == kUntilOpened) {
    LaunchHold(stream);
  } else {
    Wait<<<1, 1, 0, stream>>>(pause_ns);
  }
  Verify<<<kBlocks, kThreads, 0, stream>>>(data, words, id, state.typed_data(),
                                           result->typed_data());
  return Status(cudaGetLastError(), "launch");
}

// Three allocations, the first one freed before the others are made.
ffi::Error Pieces(cudaStream_t stream, jax_bfc::ScratchAllocator scratch,
                  int64_t nbytes, int64_t site, int64_t pause_ns, State state,
                  NewState result) {
  bool captured = false;
  if (ffi::Error error = CountCall(stream, &captured); error.failure()) {
    return error;
  }
  const size_t words = static_cast<size_t>(nbytes) / 4;
  const uint32_t* in = state.typed_data();
  uint32_t* out = result->typed_data();
  PassOn<<<1, 1, 0, stream>>>(in, out);
  const auto take = [&](int64_t piece, size_t count) {
    std::optional<uint32_t*> data = scratch.Allocate<uint32_t>(count);
    if (data) {
      NoteAddress(captured, 10 * site + piece, *data);
      Write<<<kBlocks, kThreads, 0, stream>>>(
          *data, count, static_cast<uint32_t>(10 * site + piece), in);
    }
    return data;
  };
  const auto verify = [&](int64_t piece, uint32_t* data, size_t count) {
    Wait<<<1, 1, 0, stream>>>(pause_ns);
    Verify<<<kBlocks, kThreads, 0, stream>>>(
        data, count, static_cast<uint32_t>(10 * site + piece), in, out);
  };
  const auto first = take(0, words);
  if (!first) return scratch.error();
  verify(0, *first, words);
  if (!scratch.Free(*first)) return scratch.error();
  const auto second = take(1, words);
  if (!second) return scratch.error();
  const auto third = take(2, words / 2);
  if (!third) return scratch.error();
  verify(1, *second, words);
  verify(2, *third, words / 2);
  return Status(cudaGetLastError(), "launch");
}

// State of the author's own, with a call site in it.
struct Own {
  static ffi::TypeId id;
  static ffi::TypeInfo info;
  jax_bfc::CallSite call_site{"graphs.own"};
};
ffi::TypeId Own::id = {};
ffi::TypeInfo Own::info = ffi::MakeTypeInfo<Own>();

ffi::ErrorOr<std::unique_ptr<Own>> MakeOwn() {
  return ffi::ErrorOr<std::unique_ptr<Own>>(std::make_unique<Own>());
}

ffi::Error WithOwn(Own* own, cudaStream_t stream,
                   jax_bfc::ScratchAllocator scratch, int64_t nbytes,
                   int64_t site, int64_t pause_ns, State state,
                   NewState result) {
  scratch.Bind(own->call_site);
  return Layer(stream, std::move(scratch), nbytes, site, pause_ns, state,
               result);
}

}  // namespace

#define JAX_BFC_TEST_LAYER(SCRATCH)        \
  Ctx<ffi::PlatformStream<cudaStream_t>>() \
      .Ctx<SCRATCH>()                      \
      .Attr<int64_t>("nbytes")             \
      .Attr<int64_t>("site")               \
      .Attr<int64_t>("pause_ns")           \
      .Arg<State>()                        \
      .Ret<State>()

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    kGraphLayer, Layer<jax_bfc::ScratchAllocator>,
    ffi::Ffi::Bind().JAX_BFC_TEST_LAYER(jax_bfc::ScratchAllocator),
    {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    kGraphLayerOfXla, Layer<ffi::ScratchAllocator>,
    ffi::Ffi::Bind().JAX_BFC_TEST_LAYER(ffi::ScratchAllocator),
    {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    kGraphPieces, Pieces,
    ffi::Ffi::Bind().JAX_BFC_TEST_LAYER(jax_bfc::ScratchAllocator),
    {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER_SYMBOL(kGraphMakeOwn, MakeOwn,
                              ffi::Ffi::BindInstantiate());
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    kGraphWithOwn, WithOwn,
    ffi::Ffi::Bind().Ctx<ffi::State<Own>>().JAX_BFC_TEST_LAYER(
        jax_bfc::ScratchAllocator),
    {ffi::Traits::kCmdBufferCompatible});

extern "C" {

void* GraphOwnTypeId() { return &Own::id; }
void* GraphOwnTypeInfo() { return &Own::info; }

// Handler calls so far, under capture or not.
long long GraphCalls(int captured) { return calls[captured != 0 ? 1 : 0]; }

// How many addresses a call site had in all its captures; of kGraphPieces, one
// of its pieces: 10 * site + piece.
long long GraphAddresses(long long site) {
  const std::lock_guard lock(mutex);
  return static_cast<long long>(Captured()[site].size());
}

// Takes so much on a stream of its own, writes all of it, and gives it back.
// The status of the allocation; above 100, what else went wrong.
int GraphSpoil(size_t nbytes) {
  auto* get_api = reinterpret_cast<jax_bfc_get_api_function*>(
      dlsym(RTLD_DEFAULT, JAX_BFC_GET_API_SYMBOL));
  const jax_bfc_api* api = get_api == nullptr ? nullptr : get_api(1, 1);
  if (api == nullptr) return 101;
  static cudaStream_t stream = nullptr;
  if (cudaSetDevice(0) != cudaSuccess) return 102;
  if (stream == nullptr && cudaStreamCreateWithFlags(
                               &stream, cudaStreamNonBlocking) != cudaSuccess) {
    return 103;
  }
  jax_bfc_context context;
  if (api->open_stream(JAX_BFC_CUDA, 0, stream, "spoil", 5, &context) !=
      JAX_BFC_OK) {
    return 104;
  }
  jax_bfc_allocation made;
  const jax_bfc_status status = api->allocate(&context, nbytes, 256, &made);
  if (status != JAX_BFC_OK) return status;
  Spoil<<<64, kThreads, 0, stream>>>(static_cast<uint32_t*>(made.ptr),
                                     nbytes / 4);
  if (api->free(made.ptr, made.id) != JAX_BFC_OK) return 105;
  return cudaStreamSynchronize(stream) == cudaSuccess ? 0 : 106;
}

}  // extern "C"
