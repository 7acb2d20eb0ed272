// XLA handlers of top-k/top-p sampling on the GPU, and what it needs in scratch:
// that of CUB's sort too, whose size CUB says.
#include "sample.h"

#include <algorithm>
#include <climits>
#include <string>

#include "cuda_scratch.h"
#include "operands.h"

namespace transformer {

namespace {

template <typename Source>
bool AllocateScratch(Source& scratch, SampleArgs& args) {
  const size_t count = Count({args.rows, args.vocabulary});
  char* sort_scratch = nullptr;
  if (!AllocateInto(scratch, count, &args.keys) ||
      !AllocateInto(scratch, count, &args.sorted_keys) ||
      !AllocateInto(scratch, count, &args.order) ||
      !AllocateInto(scratch, count, &args.sorted_order) ||
      !AllocateInto(scratch, count, &args.sums) ||
      !AllocateInto(scratch, args.sort_bytes, &sort_scratch)) {
    return false;
  }
  args.sort_scratch = sort_scratch;
  return true;
}

struct SampleKernel {
  template <typename Source>
  static ffi::Error Run(cudaStream_t stream, Source& scratch, F32 logits,
                        F32 uniform, S32Result tokens, float temperature,
                        int64_t top_k, float top_p) {
    const auto dims = logits.dimensions();
    if (dims.size() == 0 || dims.back() == 0 ||
        logits.element_count() > INT_MAX) {
      return Wrong("sample",
                   "logits " + ShapeText(dims) +
                       " must be (..., vocabulary), with at least one "
                       "token and fewer than 2^31 numbers");
    }
    SampleArgs args = {};
    args.vocabulary = dims.back();
    args.rows = logits.element_count() / args.vocabulary;
    if (static_cast<int64_t>(uniform.element_count()) != args.rows ||
        static_cast<int64_t>(tokens->element_count()) != args.rows) {
      return Wrong("sample", "needs one random number for each of the " +
                                 std::to_string(args.rows) +
                                 " rows of logits, and gives one token");
    }
    if (!(temperature > 0) || top_k < 0 || !(top_p > 0)) {
      return Wrong("sample",
                   "temperature and top_p must be positive, and top_k not "
                   "negative (0: all); they are " +
                       std::to_string(temperature) + ", " +
                       std::to_string(top_p) + ", " + std::to_string(top_k));
    }
    if (args.rows == 0) return ffi::Error::Success();
    args.logits = logits.typed_data();
    args.uniform = uniform.typed_data();
    args.tokens = tokens->typed_data();
    args.temperature = temperature;
    args.top_p = top_p;
    args.top_k =
        top_k == 0 ? args.vocabulary : std::min(top_k, args.vocabulary);
    const cudaError_t error =
        SortBytes(args.rows, args.rows * args.vocabulary, &args.sort_bytes);
    if (error != cudaSuccess) return CudaStatus("sample", error);
    if (!AllocateScratch(scratch, args)) return scratch.error();
    return CudaStatus("sample", Sample(args, stream));
  }
};

}  // namespace
}  // namespace transformer

TRANSFORMER_DEFINE_CUDA_HANDLERS(transformer_sample, transformer::SampleKernel,
                                 .Arg<transformer::F32>()
                                     .Arg<transformer::F32>()
                                     .Ret<transformer::S32>()
                                     .Attr<float>("temperature")
                                     .Attr<int64_t>("top_k")
                                     .Attr<float>("top_p"));

// Bytes of scratch, for an extra output; 0 where CUDA does not say.
extern "C" uint64_t transformer_sample_workspace(int64_t rows,
                                                 int64_t vocabulary,
                                                 int64_t /*bytes*/) {
  transformer::OutputScratch measure;
  transformer::SampleArgs args = {};
  args.rows = rows;
  args.vocabulary = vocabulary;
  if (transformer::SortBytes(rows, rows * vocabulary, &args.sort_bytes) !=
      cudaSuccess) {
    return 0;
  }
  transformer::AllocateScratch(measure, args);
  return measure.used();
}
