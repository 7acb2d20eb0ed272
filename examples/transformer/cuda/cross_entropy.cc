// XLA handlers of cross-entropy on the GPU, and what it needs in scratch.
#include "cross_entropy.h"

#include <algorithm>
#include <climits>
#include <initializer_list>
#include <string>
#include <utility>

#include "cuda_scratch.h"
#include "matmul.h"
#include "operands.h"

namespace transformer {

namespace {

struct CrossEntropyArgs {
  int64_t rows, dim, vocabulary;
  Element element;
  const char *hidden, *head;
  const int32_t* labels;
  // Scratch: logits of some rows and, for the gradients, their gradient, and the
  // sum of the gradient of head; what cuBLASLt works in.
  float* logits;
  char* d_logits;
  float* head_sum;
  char* workspace;

  int64_t chunk_rows() const { return ChunkRows(rows, vocabulary); }
  // bf16 would lose what each chunk of rows adds to the gradient.
  bool sums_head() const {
    return element == Element::kBf16 && chunk_rows() < rows;
  }
  MatrixElement matrix() const {
    return element == Element::kBf16 ? MatrixElement::kBf16
                                     : MatrixElement::kF32;
  }
};

template <typename Source>
bool AllocateScratch(Source& scratch, bool gradient, CrossEntropyArgs& args) {
  const size_t logits = Count({args.chunk_rows(), args.vocabulary});
  if (!AllocateInto(scratch, kMatmulWorkspaceBytes, &args.workspace) ||
      !AllocateInto(scratch, logits, &args.logits)) {
    return false;
  }
  if (!gradient) return true;
  const int64_t size = static_cast<int64_t>(SizeOf(args.element));
  if (!AllocateInto(scratch, Count({args.chunk_rows(), args.vocabulary, size}),
                    &args.d_logits)) {
    return false;
  }
  return !args.sums_head() ||
         AllocateInto(scratch, Count({args.dim, args.vocabulary}),
                      &args.head_sum);
}

ffi::Error CheckShapes(Any hidden, Any head, S32 labels,
                       CrossEntropyArgs* args) {
  const auto hidden_dims = hidden.dimensions(), head_dims = head.dimensions();
  if (hidden_dims.size() != 2 || head_dims.size() != 2 ||
      hidden_dims[1] != head_dims[0] ||
      static_cast<int64_t>(labels.element_count()) != hidden_dims[0]) {
    return Wrong("cross_entropy",
                 "hidden " + ShapeText(hidden_dims) + ", head " +
                     ShapeText(head_dims) + " and labels " +
                     ShapeText(labels.dimensions()) +
                     " must be (rows, dim), (dim, vocabulary) and (rows)");
  }
  const auto element =
      CommonElement({hidden.element_type(), head.element_type()});
  if (!element) return WrongElement("cross_entropy");
  args->rows = hidden_dims[0];
  args->dim = hidden_dims[1];
  args->vocabulary = head_dims[1];
  if (args->vocabulary > INT_MAX || args->dim > INT_MAX) {
    return Wrong("cross_entropy",
                 "head " + ShapeText(head_dims) + " is too large");
  }
  args->element = *element;
  args->hidden = static_cast<const char*>(hidden.untyped_data());
  args->head = static_cast<const char*>(head.untyped_data());
  args->labels = labels.typed_data();
  return ffi::Error::Success();
}

bool SizesFit(std::initializer_list<std::pair<size_t, int64_t>> sizes) {
  for (const auto& [is, wanted] : sizes) {
    if (static_cast<int64_t>(is) != wanted) return false;
  }
  return true;
}

ffi::Error WrongResults() {
  return Wrong("cross_entropy",
               "the shapes of the results do not match those of the operands");
}

// args.logits, of `rows` rows from row `first` on.
ffi::Error ComputeLogits(const CrossEntropyArgs& args, int64_t first,
                         int64_t rows, cudaStream_t stream) {
  const size_t row_bytes = args.dim * SizeOf(args.element);
  return Run(
      {args.matrix(), MatrixElement::kF32, rows, args.vocabulary, args.dim},
      args.hidden + first * row_bytes, args.head, args.logits, args.workspace,
      stream);
}

struct CrossEntropyForwardKernel {
  template <typename Source>
  static ffi::Error Run(cudaStream_t stream, Source& scratch, Any hidden,
                        Any head, S32 labels, F32Result loss,
                        F32Result log_sum) {
    CrossEntropyArgs args = {};
    ffi::Error error = CheckShapes(hidden, head, labels, &args);
    if (error.failure()) return error;
    if (!SizesFit({{loss->element_count(), args.rows},
                   {log_sum->element_count(), args.rows}})) {
      return WrongResults();
    }
    if (args.rows * args.dim * args.vocabulary == 0) {
      return ffi::Error::Success();
    }
    if (!AllocateScratch(scratch, false, args)) return scratch.error();
    const int64_t step = args.chunk_rows();
    for (int64_t first = 0; first < args.rows; first += step) {
      const int64_t rows = std::min(step, args.rows - first);
      error = ComputeLogits(args, first, rows, stream);
      if (error.failure()) return error;
      error =
          CudaStatus("cross_entropy_forward",
                     LossOfLogits(args.logits, args.labels + first, rows,
                                  args.vocabulary, loss->typed_data() + first,
                                  log_sum->typed_data() + first, stream));
      if (error.failure()) return error;
    }
    return ffi::Error::Success();
  }
};

// d_hidden and d_head of the rows from `first` on, whose d_logits are there.
ffi::Error MultiplyGradients(const CrossEntropyArgs& args, int64_t first,
                             int64_t rows, char* d_hidden, void* d_head,
                             cudaStream_t stream) {
  const size_t row_bytes = args.dim * SizeOf(args.element);
  Matmul to_hidden = {args.matrix(), args.matrix(), rows, args.dim,
                      args.vocabulary};
  to_hidden.transpose_b = true;
  const ffi::Error error =
      Run(to_hidden, args.d_logits, args.head, d_hidden + first * row_bytes,
          args.workspace, stream);
  if (error.failure()) return error;
  Matmul to_head = {args.matrix(),
                    args.sums_head() ? MatrixElement::kF32 : args.matrix(),
                    args.dim, args.vocabulary, rows};
  to_head.transpose_a = true;
  to_head.accumulate = first > 0;
  return Run(to_head, args.hidden + first * row_bytes, args.d_logits,
             args.sums_head() ? args.head_sum : d_head, args.workspace, stream);
}

struct CrossEntropyBackwardKernel {
  template <typename Source>
  static ffi::Error Run(cudaStream_t stream, Source& scratch, Any hidden,
                        Any head, S32 labels, F32 log_sum, F32 d_loss,
                        AnyResult d_hidden, AnyResult d_head) {
    CrossEntropyArgs args = {};
    ffi::Error error = CheckShapes(hidden, head, labels, &args);
    if (error.failure()) return error;
    if (!SizesFit({{log_sum.element_count(), args.rows},
                   {d_loss.element_count(), args.rows},
                   {d_hidden->element_count(), args.rows * args.dim},
                   {d_head->element_count(), args.dim * args.vocabulary}})) {
      return WrongResults();
    }
    if (CommonElement({hidden.element_type(), d_hidden->element_type(),
                       d_head->element_type()}) != args.element) {
      return WrongElement("cross_entropy_backward");
    }
    if (args.rows * args.dim * args.vocabulary == 0) {
      return CudaStatus("cross_entropy_backward",
                        cudaMemsetAsync(d_head->untyped_data(), 0,
                                        d_head->size_bytes(), stream));
    }
    if (!AllocateScratch(scratch, true, args)) return scratch.error();
    const int64_t step = args.chunk_rows();
    for (int64_t first = 0; first < args.rows; first += step) {
      const int64_t rows = std::min(step, args.rows - first);
      error = ComputeLogits(args, first, rows, stream);
      if (error.failure()) return error;
      error = CudaStatus(
          "cross_entropy_backward",
          GradientOfLogits(args.logits, args.labels + first,
                           log_sum.typed_data() + first,
                           d_loss.typed_data() + first, rows, args.vocabulary,
                           args.element, args.d_logits, stream));
      if (error.failure()) return error;
      error = MultiplyGradients(args, first, rows,
                                static_cast<char*>(d_hidden->untyped_data()),
                                d_head->untyped_data(), stream);
      if (error.failure()) return error;
    }
    if (!args.sums_head()) return ffi::Error::Success();
    return CudaStatus("cross_entropy_backward",
                      RoundToBf16(args.head_sum, args.dim * args.vocabulary,
                                  d_head->untyped_data(), stream));
  }
};

uint64_t Workspace(bool gradient, int64_t rows, int64_t dim, int64_t vocabulary,
                   int64_t bytes) {
  OutputScratch measure;
  CrossEntropyArgs args = {};
  args.rows = rows;
  args.dim = dim;
  args.vocabulary = vocabulary;
  args.element = ElementOfSize(bytes);
  AllocateScratch(measure, gradient, args);
  return measure.used();
}

}  // namespace
}  // namespace transformer

TRANSFORMER_DEFINE_CUDA_HANDLERS(transformer_cross_entropy_forward,
                                 transformer::CrossEntropyForwardKernel,
                                 .Arg<xla::ffi::AnyBuffer>()
                                     .Arg<xla::ffi::AnyBuffer>()
                                     .Arg<transformer::S32>()
                                     .Ret<transformer::F32>()
                                     .Ret<transformer::F32>());
TRANSFORMER_DEFINE_CUDA_HANDLERS(transformer_cross_entropy_backward,
                                 transformer::CrossEntropyBackwardKernel,
                                 .Arg<xla::ffi::AnyBuffer>()
                                     .Arg<xla::ffi::AnyBuffer>()
                                     .Arg<transformer::S32>()
                                     .Arg<transformer::F32>()
                                     .Arg<transformer::F32>()
                                     .Ret<xla::ffi::AnyBuffer>()
                                     .Ret<xla::ffi::AnyBuffer>());

// Bytes of scratch, for an extra output; the last number is an operand's bytes.
extern "C" uint64_t transformer_cross_entropy_forward_workspace(
    int64_t rows, int64_t dim, int64_t vocabulary, int64_t bytes) {
  return transformer::Workspace(false, rows, dim, vocabulary, bytes);
}
extern "C" uint64_t transformer_cross_entropy_backward_workspace(
    int64_t rows, int64_t dim, int64_t vocabulary, int64_t bytes) {
  return transformer::Workspace(true, rows, dim, vocabulary, bytes);
}
