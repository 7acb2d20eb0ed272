// XLA handlers of the cross-entropy over the vocabulary and its gradient.
#include <algorithm>

#include "parallel.h"
#include "scratch_source.h"
#include "tiles.h"

namespace transformer {

namespace {

using F32 = ffi::Buffer<ffi::F32>;
using F32Result = ffi::Result<F32>;
using S32 = ffi::Buffer<ffi::S32>;

// The parts of d_head that are summed at the end. It depends on the shape
// alone, so that the bits of the result do not depend on the number of threads.
int64_t ChunksOf(const CrossEntropyArgs& args) {
  return std::clamp<int64_t>(args.blocks(), 1, 16);
}

template <typename Source>
bool AllocateScratch(Source& scratch, int64_t slots, bool gradient,
                     CrossEntropyArgs& args) {
  const auto head =
      scratch.template Allocate<float>(Count({args.dim, args.columns()}));
  if (!head) return false;
  args.head_packed = *head;
  const auto slot_data =
      scratch.template Allocate<float>(Count({slots, args.SlotSize()}));
  if (!slot_data) return false;
  args.slots = *slot_data;
  if (!gradient) return true;
  const auto transposed =
      scratch.template Allocate<float>(Count({args.columns(), args.width()}));
  if (!transposed) return false;
  args.head_transposed = *transposed;
  const auto parts = scratch.template Allocate<float>(
      Count({args.chunks, args.dim, args.columns()}));
  if (!parts) return false;
  args.d_head_parts = *parts;
  return true;
}

ffi::Error CheckShapes(const F32& hidden, const F32& head, const S32& labels,
                       CrossEntropyArgs* args) {
  if (hidden.dimensions().size() != 2 || head.dimensions().size() != 2 ||
      labels.dimensions().size() != 1) {
    return ffi::Error::InvalidArgument(
        "transformer.cross_entropy: hidden must be (rows, dim), head (dim, "
        "vocabulary), labels (rows)");
  }
  args->rows = hidden.dimensions()[0];
  args->dim = hidden.dimensions()[1];
  args->vocabulary = head.dimensions()[1];
  if (head.dimensions()[0] != args->dim ||
      labels.dimensions()[0] != args->rows || args->vocabulary == 0) {
    return ffi::Error::InvalidArgument(
        "transformer.cross_entropy: hidden (" + std::to_string(args->rows) +
        ", " + std::to_string(args->dim) + "), head (" +
        std::to_string(head.dimensions()[0]) + ", " +
        std::to_string(args->vocabulary) + ") and labels (" +
        std::to_string(labels.dimensions()[0]) + ") do not fit together");
  }
  args->chunks = ChunksOf(*args);
  args->hidden = hidden.typed_data();
  args->head = head.typed_data();
  args->labels = labels.typed_data();
  for (int64_t i = 0; i < args->rows; ++i) {
    if (args->labels[i] < 0 || args->labels[i] >= args->vocabulary) {
      return ffi::Error::InvalidArgument(
          "transformer.cross_entropy: label " +
          std::to_string(args->labels[i]) + " of row " + std::to_string(i) +
          " is outside [0, " + std::to_string(args->vocabulary) + ")");
    }
  }
  return ffi::Error::Success();
}

bool SizesFit(F32Result result, int64_t size) {
  return static_cast<int64_t>(result->element_count()) == size;
}

ffi::Error WrongResults() {
  return ffi::Error::InvalidArgument(
      "transformer.cross_entropy: the shapes of the results do not match those "
      "of the operands");
}

struct CrossEntropyForwardKernel {
  template <typename Source>
  static ffi::Error Run(ffi::ThreadPool& pool, Source& scratch, F32 hidden,
                        F32 head, S32 labels, F32Result loss, F32Result log_sum,
                        int64_t max_threads) {
    CrossEntropyArgs args = {};
    ffi::Error error = CheckShapes(hidden, head, labels, &args);
    if (error.failure()) return error;
    if (!SizesFit(loss, args.rows) || !SizesFit(log_sum, args.rows)) {
      return WrongResults();
    }
    args.loss = loss->typed_data();
    args.log_sum = log_sum->typed_data();
    const int64_t slots = Slots(pool, args.blocks(), max_threads);
    if (!AllocateScratch(scratch, slots, false, args)) return scratch.error();
    const Tiles& tiles = TilesOfThisProcessor();
    for (int64_t i = 0; i < args.dim; ++i) tiles.pack_head(args, i);
    ParallelFor(pool, args.blocks(), slots, [&](int64_t tile, int64_t slot) {
      tiles.cross_entropy_loss(args, tile, slot);
    });
    return ffi::Error::Success();
  }
};

struct CrossEntropyBackwardKernel {
  template <typename Source>
  static ffi::Error Run(ffi::ThreadPool& pool, Source& scratch, F32 hidden,
                        F32 head, S32 labels, F32 log_sum, F32 d_loss,
                        F32Result d_hidden, F32Result d_head,
                        int64_t max_threads) {
    CrossEntropyArgs args = {};
    ffi::Error error = CheckShapes(hidden, head, labels, &args);
    if (error.failure()) return error;
    if (static_cast<int64_t>(log_sum.element_count()) != args.rows ||
        static_cast<int64_t>(d_loss.element_count()) != args.rows ||
        !SizesFit(d_hidden, args.rows * args.dim) ||
        !SizesFit(d_head, args.dim * args.vocabulary)) {
      return WrongResults();
    }
    args.log_sum = log_sum.typed_data();
    args.d_loss = d_loss.typed_data();
    args.d_hidden = d_hidden->typed_data();
    args.d_head = d_head->typed_data();
    const int64_t slots = Slots(pool, args.chunks, max_threads);
    if (!AllocateScratch(scratch, slots, true, args)) return scratch.error();
    const Tiles& tiles = TilesOfThisProcessor();
    for (int64_t i = 0; i < args.dim; ++i) tiles.pack_head(args, i);
    for (int64_t i = 0; i < args.columns(); ++i) tiles.transpose_head(args, i);
    ParallelFor(pool, args.chunks, slots, [&](int64_t tile, int64_t slot) {
      tiles.cross_entropy_gradient(args, tile, slot);
    });
    ParallelFor(pool, args.dim, slots, [&](int64_t tile, int64_t) {
      tiles.sum_head_gradient(args, tile);
    });
    return ffi::Error::Success();
  }
};

uint64_t Workspace(bool gradient, int64_t rows, int64_t dim, int64_t vocabulary,
                   int64_t threads) {
  OutputScratch measure;
  CrossEntropyArgs args = {};
  args.rows = rows;
  args.dim = dim;
  args.vocabulary = vocabulary;
  args.chunks = ChunksOf(args);
  AllocateScratch(measure, threads, gradient, args);
  return measure.used();
}

}  // namespace
}  // namespace transformer

TRANSFORMER_DEFINE_HANDLERS(transformer_cross_entropy_forward,
                            transformer::CrossEntropyForwardKernel,
                            .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                .Attr<int64_t>("max_threads"));
TRANSFORMER_DEFINE_HANDLERS(transformer_cross_entropy_backward,
                            transformer::CrossEntropyBackwardKernel,
                            .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                .Attr<int64_t>("max_threads"));

extern "C" uint64_t transformer_cross_entropy_forward_workspace(
    int64_t rows, int64_t dim, int64_t vocabulary, int64_t threads) {
  return transformer::Workspace(false, rows, dim, vocabulary, threads);
}
extern "C" uint64_t transformer_cross_entropy_backward_workspace(
    int64_t rows, int64_t dim, int64_t vocabulary, int64_t threads) {
  return transformer::Workspace(true, rows, dim, vocabulary, threads);
}
