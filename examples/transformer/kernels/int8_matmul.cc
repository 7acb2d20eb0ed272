// XLA handlers of the dynamically quantised matrix product.
#include "parallel.h"
#include "scratch_source.h"
#include "tiles.h"

namespace transformer {

namespace {

using F32 = ffi::Buffer<ffi::F32>;
using F32Result = ffi::Result<F32>;

// 255 * 127 * kMaxDepth is still a number of 31 bits.
constexpr int64_t kMaxDepth = 65536;
static_assert(255 * 127 * kMaxDepth < INT32_MAX);

// Below this many multiplications a thread costs more than it brings.
constexpr int64_t kWorkOfAThread = 1 << 21;

template <typename Source>
bool AllocateScratch(Source& scratch, Int8Args& args) {
  const int64_t depth = args.padded_depth(), panels = args.panels();
  const auto x = scratch.template Allocate<uint8_t>(Count({args.rows, depth}));
  if (!x) return false;
  const auto x_scale = scratch.template Allocate<float>(args.rows);
  if (!x_scale) return false;
  const auto w =
      scratch.template Allocate<int8_t>(Count({panels, depth, kPadding}));
  if (!w) return false;
  const auto w_scale =
      scratch.template Allocate<float>(Count({panels, kPadding}));
  if (!w_scale) return false;
  const auto w_sum =
      scratch.template Allocate<int32_t>(Count({panels, kPadding}));
  if (!w_sum) return false;
  args.x_packed = *x;
  args.x_scale = *x_scale;
  args.w_packed = *w;
  args.w_scale = *w_scale;
  args.w_sum = *w_sum;
  return true;
}

struct Int8MatmulKernel {
  template <typename Source>
  static ffi::Error Run(ffi::ThreadPool& pool, Source& scratch, F32 x, F32 w,
                        F32Result y, int64_t max_threads) {
    const auto x_dims = x.dimensions(), w_dims = w.dimensions();
    if (x_dims.size() != 2 || w_dims.size() != 2 || x_dims[1] != w_dims[0]) {
      return ffi::Error::InvalidArgument(
          "transformer.int8_matmul: x must be (rows, depth) and w (depth, "
          "columns), with the same depth");
    }
    Int8Args args = {};
    args.rows = x_dims[0];
    args.depth = x_dims[1];
    args.columns = w_dims[1];
    if (args.depth > kMaxDepth) {
      return ffi::Error::InvalidArgument(
          "transformer.int8_matmul: a depth of " + std::to_string(args.depth) +
          " can overflow sums of 32 bits; the most is " +
          std::to_string(kMaxDepth));
    }
    if (static_cast<int64_t>(y->element_count()) != args.rows * args.columns) {
      return ffi::Error::InvalidArgument(
          "transformer.int8_matmul: y must be (rows, columns)");
    }
    args.x = x.typed_data();
    args.w = w.typed_data();
    args.y = y->typed_data();
    if (!AllocateScratch(scratch, args)) return scratch.error();

    const int64_t work = args.rows * args.depth * args.columns;
    const int64_t slots = Slots(pool, 1 + work / kWorkOfAThread, max_threads);
    const Tiles& tiles = TilesOfThisProcessor();
    ParallelFor(pool, args.row_blocks(), slots, [&](int64_t tile, int64_t) {
      tiles.quantise_rows(args, tile);
    });
    ParallelFor(pool, args.panels(), slots, [&](int64_t tile, int64_t) {
      tiles.quantise_columns(args, tile);
    });
    ParallelFor(pool, args.row_blocks(), slots, [&](int64_t tile, int64_t) {
      tiles.int8_multiply(args, tile);
    });
    return ffi::Error::Success();
  }
};

}  // namespace
}  // namespace transformer

TRANSFORMER_DEFINE_HANDLERS(transformer_int8_matmul,
                            transformer::Int8MatmulKernel,
                            .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                .Attr<int64_t>("max_threads"));

extern "C" uint64_t transformer_int8_matmul_workspace(int64_t rows,
                                                      int64_t depth,
                                                      int64_t columns,
                                                      int64_t /*threads*/) {
  transformer::OutputScratch measure;
  transformer::Int8Args args = {};
  args.rows = rows;
  args.depth = depth;
  args.columns = columns;
  transformer::AllocateScratch(measure, args);
  return measure.used();
}
