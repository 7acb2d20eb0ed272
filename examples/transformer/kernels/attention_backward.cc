// XLA handlers of the backward pass of attention, and what it needs in scratch.
#include "attention.h"
#include "parallel.h"
#include "scratch_source.h"

namespace transformer {

namespace {

using F32 = ffi::Buffer<ffi::F32>;
using F32Result = ffi::Result<F32>;

// Into how many tiles the keys of one head are split: enough to keep many
// threads busy where there are few heads. It depends on the shape alone, so
// that the sums, and the bits of the result, do not depend on the threads.
int64_t SplitsOf(const AttentionShape& shape) {
  const int64_t wanted = 64 / std::max<int64_t>(1, shape.num_heads());
  return std::clamp<int64_t>(wanted, 1,
                             std::clamp<int64_t>(shape.blocks(), 1, 16));
}

template <typename Source>
bool AllocateScratch(Source& scratch, int64_t slots,
                     AttentionBackwardArgs& args) {
  const AttentionShape& shape = args.shape;
  const int64_t tiles = shape.tiles(), block = shape.block_size();
  const size_t packed = Count({tiles, block}), rows = Count({tiles, kBlock});
  const struct {
    float** where;
    size_t count;
  } pieces[] = {
      {&args.q_packed, packed},
      {&args.k_packed, packed},
      {&args.d_out_packed, packed},
      {&args.k_transposed, packed},
      {&args.v_transposed, packed},
      {&args.log_sum_packed, rows},
      {&args.out_dot_d_out, rows},
      {&args.d_q_parts, Count({args.splits, tiles, block})},
      {&args.slots, Count({slots, AttentionBackwardArgs::SlotSize(shape)})},
  };
  for (const auto& piece : pieces) {
    const auto data = scratch.template Allocate<float>(piece.count);
    if (!data) return false;
    *piece.where = *data;
  }
  return true;
}

struct AttentionBackwardKernel {
  template <typename Source>
  static ffi::Error Run(ffi::ThreadPool& pool, Source& scratch, F32 q, F32 k,
                        F32 v, F32 out, F32 log_sum, F32 d_out, F32Result d_q,
                        F32Result d_k, F32Result d_v, int64_t max_threads) {
    AttentionBackwardArgs args = {};
    ffi::Error error =
        CheckAttention({q.dimensions(), k.dimensions(), v.dimensions(),
                        out.dimensions(), d_out.dimensions(), d_q->dimensions(),
                        d_k->dimensions(), d_v->dimensions()},
                       log_sum.dimensions(), &args.shape);
    if (error.failure()) return error;
    const AttentionShape& shape = args.shape;
    if (shape.tiles() == 0) return ffi::Error::Success();
    args.scale = ScoreScale(shape);
    args.splits = SplitsOf(shape);
    args.q = q.typed_data();
    args.k = k.typed_data();
    args.v = v.typed_data();
    args.out = out.typed_data();
    args.log_sum = log_sum.typed_data();
    args.d_out = d_out.typed_data();
    args.d_q = d_q->typed_data();
    args.d_k = d_k->typed_data();
    args.d_v = d_v->typed_data();

    const int64_t slots =
        Slots(pool, shape.num_heads() * args.splits, max_threads);
    if (!AllocateScratch(scratch, slots, args)) return scratch.error();
    const Tiles& tiles = TilesOfThisProcessor();
    ParallelFor(pool, shape.tiles(), slots, [&](int64_t tile, int64_t) {
      tiles.pack_backward(args, tile);
    });
    ParallelFor(pool, shape.num_heads() * args.splits, slots,
                [&](int64_t tile, int64_t slot) {
                  tiles.attention_gradient(args, tile, slot);
                });
    ParallelFor(pool, shape.tiles(), slots, [&](int64_t tile, int64_t) {
      tiles.sum_query_gradient(args, tile);
    });
    return ffi::Error::Success();
  }
};

}  // namespace
}  // namespace transformer

TRANSFORMER_DEFINE_HANDLERS(transformer_attention_backward,
                            transformer::AttentionBackwardKernel,
                            .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                .Attr<int64_t>("max_threads"));

extern "C" uint64_t transformer_attention_backward_workspace(
    int64_t batch, int64_t time, int64_t heads, int64_t dim, int64_t threads) {
  transformer::OutputScratch measure;
  transformer::AttentionBackwardArgs args = {};
  args.shape = {batch, time, heads, dim};
  args.splits = transformer::SplitsOf(args.shape);
  transformer::AllocateScratch(measure, threads, args);
  return measure.used();
}
