// XLA handlers of the forward pass of attention, and what it needs in scratch.
#include "attention.h"

#include "parallel.h"
#include "scratch_source.h"

namespace transformer {

namespace {

using F32 = ffi::Buffer<ffi::F32>;
using F32Result = ffi::Result<F32>;

template <typename Source>
bool AllocateScratch(Source& scratch, int64_t slots,
                     AttentionForwardArgs& args) {
  const AttentionShape& shape = args.shape;
  const size_t packed = Count({shape.tiles(), shape.block_size()});
  const auto k_transposed = scratch.template Allocate<float>(packed);
  if (!k_transposed) return false;
  const auto v_packed = scratch.template Allocate<float>(packed);
  if (!v_packed) return false;
  const auto slot_data = scratch.template Allocate<float>(
      Count({slots, AttentionForwardArgs::SlotSize(shape)}));
  if (!slot_data) return false;
  args.k_transposed = *k_transposed;
  args.v_packed = *v_packed;
  args.slots = *slot_data;
  return true;
}

struct AttentionForwardKernel {
  template <typename Source>
  static ffi::Error Run(ffi::ThreadPool& pool, Source& scratch, F32 q, F32 k,
                        F32 v, F32Result out, F32Result log_sum,
                        int64_t max_threads) {
    AttentionForwardArgs args = {};
    ffi::Error error = CheckAttention(
        {q.dimensions(), k.dimensions(), v.dimensions(), out->dimensions()},
        log_sum->dimensions(), &args.shape);
    if (error.failure()) return error;
    const AttentionShape& shape = args.shape;
    if (shape.tiles() == 0) return ffi::Error::Success();
    args.scale = ScoreScale(shape);
    args.q = q.typed_data();
    args.k = k.typed_data();
    args.v = v.typed_data();
    args.out = out->typed_data();
    args.log_sum = log_sum->typed_data();

    const int64_t slots = Slots(pool, shape.tiles(), max_threads);
    if (!AllocateScratch(scratch, slots, args)) return scratch.error();
    const Tiles& tiles = TilesOfThisProcessor();
    ParallelFor(pool, shape.tiles(), slots,
                [&](int64_t tile, int64_t) { tiles.pack_forward(args, tile); });
    ParallelFor(pool, shape.tiles(), slots, [&](int64_t tile, int64_t slot) {
      tiles.attention_forward(args, tile, slot);
    });
    return ffi::Error::Success();
  }
};

}  // namespace

ffi::Error CheckAttention(std::initializer_list<Dimensions> operands,
                          Dimensions log_sum, AttentionShape* shape) {
  const Dimensions q = *operands.begin();
  if (q.size() < 3) {
    return ffi::Error::InvalidArgument(
        "transformer.attention: q has " + std::to_string(q.size()) +
        " axes; it needs at least (time, heads, dim)");
  }
  for (const Dimensions& operand : operands) {
    if (!std::equal(q.begin(), q.end(), operand.begin(), operand.end())) {
      return ffi::Error::InvalidArgument(
          "transformer.attention: q " + ShapeText(q) +
          " and an operand or "
          "result " +
          ShapeText(operand) + " differ in shape");
    }
  }
  *shape = {1, q[q.size() - 3], q[q.size() - 2], q[q.size() - 1]};
  for (size_t i = 0; i + 3 < q.size(); ++i) shape->batch *= q[i];
  int64_t log_sums = 1;
  for (int64_t size : log_sum) log_sums *= size;
  if (log_sums != shape->batch * shape->time * shape->heads) {
    return ffi::Error::InvalidArgument(
        "transformer.attention: the logarithms of sums have shape " +
        ShapeText(log_sum) + "; q " + ShapeText(q) +
        " needs (..., heads, time)");
  }
  return ffi::Error::Success();
}

}  // namespace transformer

TRANSFORMER_DEFINE_HANDLERS(transformer_attention_forward,
                            transformer::AttentionForwardKernel,
                            .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                .Attr<int64_t>("max_threads"));

extern "C" uint64_t transformer_attention_forward_workspace(
    int64_t batch, int64_t time, int64_t heads, int64_t dim, int64_t threads) {
  transformer::OutputScratch measure;
  transformer::AttentionForwardArgs args = {};
  args.shape = {batch, time, heads, dim};
  transformer::AllocateScratch(measure, threads, args);
  return measure.used();
}
