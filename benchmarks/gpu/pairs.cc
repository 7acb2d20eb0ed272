// A custom call that times allocators from inside its handler.
//
// Python says what by gpu_pairs_ask, then runs a program with one of the two
// handlers, which writes the figures to where it was told. The two differ in
// their traits alone: XLA may put the one into a CUDA graph, so jax_bfc has to
// ask the driver, once a call, whether the stream is being captured; the other
// is never captured.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "gpu/c_table.h"
#include "gpu/cuda_check.h"
#include "gpu/workload.h"
#include "jax_bfc/scratch.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace jax_bfc::bench {

// What XLA called the handler with.
struct Call {
  XLA_FFI_CallFrame* frame;
};

}  // namespace jax_bfc::bench

namespace xla::ffi {

template <>
struct CtxDecoding<jax_bfc::bench::Call> {
  using Type = jax_bfc::bench::Call;
};

namespace internal {

template <>
struct Decode<CtxTag<jax_bfc::bench::Call>> {
  static std::optional<jax_bfc::bench::Call> call(DecodingOffsets&,
                                                  DecodingContext& ctx,
                                                  DiagnosticEngine&) {
    return jax_bfc::bench::Call{ctx.call_frame};
  }
};

}  // namespace internal
}  // namespace xla::ffi

namespace jax_bfc::bench {
namespace {

struct Request {
  std::string side;
  std::string workload;
  int samples = 0;
  int64_t pairs = 0;
  double* answer = nullptr;
};
// Written before a program is run, read while it runs, by one thread of Python.
Request request;

ScratchAllocator Decoded(const Call& call) {
  ffi::DiagnosticEngine diagnostic;
  std::optional<ScratchAllocator> scratch =
      ScratchAllocator::ForCall(call.frame, diagnostic);
  if (!scratch) throw std::runtime_error(diagnostic.Result());
  return std::move(*scratch);
}

void* Checked(ScratchAllocator& scratch, size_t bytes) {
  std::optional<void*> ptr = scratch.Allocate(bytes);
  if (!ptr) [[unlikely]] {
    throw std::runtime_error(scratch.error().message());
  }
  return *ptr;
}

// ---------------------------------------------------------------------------
// The sides.

class Ours {
 public:
  explicit Ours(const Call& call) : scratch_(Decoded(call)) {}
  void* Allocate(size_t bytes) { return Checked(scratch_, bytes); }
  void Free(void* ptr, size_t) {
    if (!scratch_.Free(ptr)) [[unlikely]] {
      throw std::runtime_error(scratch_.error().message());
    }
  }

 private:
  ScratchAllocator scratch_;
};

// Two, so that every other chunk is freed without a search for each.
class OurBackground {
 public:
  explicit OurBackground(const Call& call) : kept_(Decoded(call)) {
    ScratchAllocator freed = Decoded(call);
    for (int i = 0; i < 2 * kFreeChunks; ++i) {
      Checked(i % 2 == 0 ? kept_ : freed, ChunkBytes(i));
    }
  }

 private:
  ScratchAllocator kept_;
};

// What xla::ffi::ScratchAllocator calls, without its list of what to free.
class Xla {
 public:
  explicit Xla(const Call& call)
      : api_(call.frame->api), context_(call.frame->ctx) {}
  void* Allocate(size_t bytes) {
    XLA_FFI_DeviceMemory_Allocate_Args args = {
        XLA_FFI_DeviceMemory_Allocate_Args_STRUCT_SIZE,
        nullptr,
        context_,
        bytes,
        1,
        nullptr};
    Check(api_->XLA_FFI_DeviceMemory_Allocate(&args));
    return args.data;
  }
  void Free(void* ptr, size_t bytes) {
    XLA_FFI_DeviceMemory_Free_Args args = {
        XLA_FFI_DeviceMemory_Free_Args_STRUCT_SIZE, nullptr, context_, bytes,
        ptr};
    Check(api_->XLA_FFI_DeviceMemory_Free(&args));
  }

 private:
  void Check(XLA_FFI_Error* error) {
    if (error == nullptr) [[likely]] {
      return;
    }
    std::string message = ffi::internal::GetErrorMessage(api_, error);
    ffi::internal::DestroyError(api_, error);
    throw std::runtime_error("XLA's scratch: " + message);
  }

  const XLA_FFI_Api* api_;
  decltype(XLA_FFI_CallFrame::ctx) context_;
};

class CudaAsync {
 public:
  explicit CudaAsync(cudaStream_t stream) : stream_(stream) {
    int device = 0;
    CHECK_CUDA(cudaGetDevice(&device));
    cudaMemPool_t pool;
    CHECK_CUDA(cudaDeviceGetDefaultMemPool(&pool, device));
    uint64_t keep = UINT64_MAX;  // nothing is given back at a synchronisation
    CHECK_CUDA(
        cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep));
  }
  void* Allocate(size_t bytes) {
    void* ptr = nullptr;
    CHECK_CUDA(cudaMallocAsync(&ptr, bytes, stream_));
    return ptr;
  }
  void Free(void* ptr, size_t) { CHECK_CUDA(cudaFreeAsync(ptr, stream_)); }

 private:
  cudaStream_t stream_;
};

// What the loops and the clock cost.
class Empty {
 public:
  void* Allocate(size_t) { return this; }
  void Free(void* ptr, size_t) { Use(ptr); }
};

// ---------------------------------------------------------------------------
// What is timed.

template <typename Side>
std::vector<double> TimeSide(Side& side) {
  return TimeSamples(request.samples, request.pairs, [&](int64_t pairs) {
    return RunPairs(side, WorkloadNamed(request.workload), pairs);
  });
}

template <typename Side>
std::vector<double> TimePeer(Side side) {
  std::optional<Background<Side>> background;
  if (NeedsBackground(WorkloadNamed(request.workload))) {
    background.emplace(side);
  }
  return TimeSide(side);
}

std::vector<double> TimeOurs(const Call& call) {
  std::optional<OurBackground> background;
  if (NeedsBackground(WorkloadNamed(request.workload))) {
    background.emplace(call);
  }
  Ours side(call);
  return TimeSide(side);
}

// `body()` in a loop.
template <typename Body>
std::vector<double> TimeEach(Body&& body) {
  return TimeSamples(request.samples, request.pairs, [&](int64_t count) {
    for (int64_t i = 0; i < count; ++i) body();
    return count;
  });
}

// Only the table's part of the decoding: no object of C++.
std::vector<double> TimeBeginCall(const Call& call) {
  const jax_bfc_api& api = Table();
  return TimeEach([&] {
    const jax_bfc_call_args args = {sizeof(args), call.frame->api,
                                    call.frame->ctx, call.frame,
                                    static_cast<int32_t>(call.frame->stage)};
    jax_bfc_context context;
    CheckTable(api, api.begin_call(&args, &context));
    Use(&context);
  });
}

// As in a handler that takes a jax_bfc::ScratchAllocator and allocates once.
std::vector<double> TimeDecode(const Call& call, bool with_pair) {
  ffi::DiagnosticEngine diagnostic;
  return TimeEach([&] {
    std::optional<ScratchAllocator> scratch =
        ScratchAllocator::ForCall(call.frame, diagnostic);
    if (!scratch) [[unlikely]] {
      throw std::runtime_error(diagnostic.Result());
    }
    Use(with_pair ? Checked(*scratch, kSameSizeBytes) : &*scratch);
  });
}

// On a pool without memory: the call's decoding, the first allocation, and then
// one that does not fit into what the first step left.
std::vector<double> TimeGrowth(const Call& call) {
  ffi::DiagnosticEngine diagnostic;
  const uint64_t begin = NowNs();
  std::optional<ScratchAllocator> scratch =
      ScratchAllocator::ForCall(call.frame, diagnostic);
  if (!scratch) throw std::runtime_error(diagnostic.Result());
  const uint64_t decoded = NowNs();
  Checked(*scratch, size_t{1} << 20);
  const uint64_t first = NowNs();
  Checked(*scratch, size_t{1} << 30);
  const uint64_t second = NowNs();
  return {static_cast<double>(decoded - begin),
          static_cast<double>(first - decoded),
          static_cast<double>(second - first)};
}

std::vector<double> Time(const Call& call, cudaStream_t stream) {
  const std::string& side = request.side;
  if (side == "jax_bfc") return TimeOurs(call);
  if (side == "xla") return TimePeer(Xla(call));
  if (side == "cuda_async") return TimePeer(CudaAsync(stream));
  if (side == "empty") return TimePeer(Empty());
  if (side == "begin_call") return TimeBeginCall(call);
  if (side == "decode") return TimeDecode(call, /*with_pair=*/false);
  if (side == "decode_and_pair") return TimeDecode(call, /*with_pair=*/true);
  if (side == "growth") return TimeGrowth(call);
  throw std::runtime_error("no side '" + side + "'");
}

ffi::Error Pairs(Call call, cudaStream_t stream,
                 ffi::Result<ffi::Buffer<ffi::F32>>) {
  try {
    const std::vector<double> ns = Time(call, stream);
    std::copy(ns.begin(), ns.end(), request.answer);
    return ffi::Error::Success();
  } catch (const std::exception& error) {
    return ffi::Error(ffi::ErrorCode::kInternal,
                      request.side + ": " + error.what());
  }
}

auto Binding() {
  return ffi::Ffi::Bind()
      .Ctx<Call>()
      .Ctx<ffi::PlatformStream<cudaStream_t>>()
      .Ret<ffi::Buffer<ffi::F32>>();
}

}  // namespace
}  // namespace jax_bfc::bench

XLA_FFI_DEFINE_HANDLER_SYMBOL(gpu_pairs_graph, jax_bfc::bench::Pairs,
                              jax_bfc::bench::Binding(),
                              {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER_SYMBOL(gpu_pairs_plain, jax_bfc::bench::Pairs,
                              jax_bfc::bench::Binding());

// `answer` has room for as many figures as there will be: `samples`, or 3.
extern "C" void gpu_pairs_ask(const char* side, const char* workload,
                              int samples, int64_t pairs, double* answer) {
  jax_bfc::bench::request = {side, workload, samples, pairs, answer};
}
