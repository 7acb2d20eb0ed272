// XLA handlers of attention on the GPU, and what it needs in scratch.
#include "attention.h"

#include <algorithm>
#include <climits>
#include <initializer_list>
#include <string>

#include "cuda_scratch.h"
#include "operands.h"

namespace transformer {

namespace {

using Dimensions = ffi::AnyBuffer::Dimensions;

// Scratch of one part for every split: sums and, where asked for, logarithms.
template <typename Source>
bool AllocateParts(Source& scratch, const AttentionShape& shape, int64_t splits,
                   float** sums, float** log_sums) {
  const size_t rows = Count({splits, shape.batch, shape.heads, shape.time});
  const size_t numbers =
      Count({splits, shape.batch, shape.heads, shape.time, shape.dim});
  return AllocateInto(scratch, numbers, sums) &&
         (log_sums == nullptr || AllocateInto(scratch, rows, log_sums));
}

template <typename Source>
bool AllocateScratch(Source& scratch, AttentionForwardArgs& args) {
  args.split_length = SplitLength(args.shape);
  args.splits = Splits(args.shape);
  if (args.splits <= 1) return true;  // straight to the results
  return AllocateParts(scratch, args.shape, args.splits, &args.partial_out,
                       &args.partial_log_sum);
}

template <typename Source>
bool AllocateScratch(Source& scratch, AttentionBackwardArgs& args) {
  args.split_length = SplitLength(args.shape);
  args.splits = Splits(args.shape);
  if (!AllocateInto(
          scratch, Count({args.shape.batch, args.shape.heads, args.shape.time}),
          &args.delta)) {
    return false;
  }
  if (args.splits <= 1) return true;
  return AllocateParts(scratch, args.shape, args.splits, &args.partial[0],
                       nullptr) &&
         AllocateParts(scratch, args.shape, args.splits, &args.partial[1],
                       nullptr);
}

template <typename Source>
bool AllocateScratch(Source& scratch, DecodeArgs& args) {
  const AttentionShape row = {args.shape.batch, 1, args.shape.heads,
                              args.shape.dim};
  return AllocateParts(scratch, row, DecodeSplits(args.shape),
                       &args.partial_out, &args.partial_log_sum);
}

// Fills in the shape from that of the operands (q first), which must all agree.
// Leading axes count as one batch.
ffi::Error CheckShapes(std::initializer_list<Dimensions> operands,
                       Dimensions log_sum, AttentionShape* shape) {
  const std::string kernel = "attention";
  const Dimensions q = *operands.begin();
  if (q.size() < 3) {
    return Wrong(kernel, "q " + ShapeText(q) +
                             " must have at least the axes (time, heads, dim)");
  }
  for (const Dimensions& operand : operands) {
    if (!std::equal(q.begin(), q.end(), operand.begin(), operand.end())) {
      return Wrong(kernel, "q " + ShapeText(q) + " and an operand or result " +
                               ShapeText(operand) + " differ in shape");
    }
  }
  *shape = {1, q[q.size() - 3], q[q.size() - 2], q[q.size() - 1]};
  for (size_t i = 0; i + 3 < q.size(); ++i) shape->batch *= q[i];
  if (shape->dim > kMaxDim) {
    return Wrong(kernel, "heads of " + std::to_string(shape->dim) +
                             " numbers; the most is " +
                             std::to_string(kMaxDim));
  }
  if (shape->batch * shape->heads > INT_MAX || shape->tiles() > 65535) {
    return Wrong(kernel, "q " + ShapeText(q) + " is too large for one call");
  }
  int64_t log_sums = 1;
  for (int64_t size : log_sum) log_sums *= size;
  if (log_sums != shape->rows()) {
    return Wrong(kernel, "the logarithms of sums have shape " +
                             ShapeText(log_sum) + "; q " + ShapeText(q) +
                             " needs (..., heads, time)");
  }
  return ffi::Error::Success();
}

struct AttentionForwardKernel {
  template <typename Source>
  static ffi::Error Run(cudaStream_t stream, Source& scratch, Any q, Any k,
                        Any v, AnyResult out, F32Result log_sum) {
    AttentionForwardArgs args = {};
    const ffi::Error error = CheckShapes(
        {q.dimensions(), k.dimensions(), v.dimensions(), out->dimensions()},
        log_sum->dimensions(), &args.shape);
    if (error.failure()) return error;
    const auto element = CommonElement({q.element_type(), k.element_type(),
                                        v.element_type(), out->element_type()});
    if (!element) return WrongElement("attention_forward");
    if (args.shape.rows() * args.shape.dim == 0) return ffi::Error::Success();
    args.element = *element;
    args.q = q.untyped_data();
    args.k = k.untyped_data();
    args.v = v.untyped_data();
    args.out = out->untyped_data();
    args.log_sum = log_sum->typed_data();
    args.vectors =
        RowsAreAligned({args.q, args.k, args.v}, args.shape.dim, *element);
    if (!AllocateScratch(scratch, args)) return scratch.error();
    return CudaStatus("attention_forward", AttentionForward(args, stream));
  }
};

struct AttentionBackwardKernel {
  template <typename Source>
  static ffi::Error Run(cudaStream_t stream, Source& scratch, Any q, Any k,
                        Any v, Any out, F32 log_sum, Any d_out, AnyResult d_q,
                        AnyResult d_k, AnyResult d_v) {
    AttentionBackwardArgs args = {};
    const ffi::Error error =
        CheckShapes({q.dimensions(), k.dimensions(), v.dimensions(),
                     out.dimensions(), d_out.dimensions(), d_q->dimensions(),
                     d_k->dimensions(), d_v->dimensions()},
                    log_sum.dimensions(), &args.shape);
    if (error.failure()) return error;
    const auto element = CommonElement(
        {q.element_type(), k.element_type(), v.element_type(),
         out.element_type(), d_out.element_type(), d_q->element_type(),
         d_k->element_type(), d_v->element_type()});
    if (!element) return WrongElement("attention_backward");
    if (args.shape.rows() * args.shape.dim == 0) return ffi::Error::Success();
    args.element = *element;
    args.q = q.untyped_data();
    args.k = k.untyped_data();
    args.v = v.untyped_data();
    args.out = out.untyped_data();
    args.d_out = d_out.untyped_data();
    args.log_sum = log_sum.typed_data();
    args.d_q = d_q->untyped_data();
    args.d_k = d_k->untyped_data();
    args.d_v = d_v->untyped_data();
    args.vectors =
        RowsAreAligned({args.q, args.k, args.v, args.out, args.d_out},
                       args.shape.dim, *element);
    if (!AllocateScratch(scratch, args)) return scratch.error();
    return CudaStatus("attention_backward", AttentionBackward(args, stream));
  }
};

struct DecodeKernel {
  template <typename Source>
  static ffi::Error Run(cudaStream_t stream, Source& scratch, Any q, Any k,
                        Any v, S32 position, AnyResult out) {
    const Dimensions q_dims = q.dimensions(), k_dims = k.dimensions(),
                     v_dims = v.dimensions(), out_dims = out->dimensions();
    const auto equal = [](Dimensions a, Dimensions b) {
      return std::equal(a.begin(), a.end(), b.begin(), b.end());
    };
    if (q_dims.size() != 3 || k_dims.size() != 4 || !equal(k_dims, v_dims) ||
        !equal(q_dims, out_dims) || k_dims[0] != q_dims[0] ||
        k_dims[2] != q_dims[1] || k_dims[3] != q_dims[2] ||
        position.element_count() != 1) {
      return Wrong("decode",
                   "q " + ShapeText(q_dims) +
                       " must be (batch, heads, dim) as the result, k " +
                       ShapeText(k_dims) + " and v " + ShapeText(v_dims) +
                       " (batch, time, heads, dim), with one position");
    }
    DecodeArgs args = {};
    args.shape = {k_dims[0], k_dims[1], k_dims[2], k_dims[3]};
    if (args.shape.dim > kMaxDim ||
        args.shape.batch * args.shape.heads > INT_MAX ||
        DecodeSplits(args.shape) > 65535) {
      return Wrong("decode", "k " + ShapeText(k_dims) +
                                 " is too large for one call; dim is at most " +
                                 std::to_string(kMaxDim));
    }
    const auto element = CommonElement({q.element_type(), k.element_type(),
                                        v.element_type(), out->element_type()});
    if (!element) return WrongElement("decode");
    if (q.element_count() == 0 || args.shape.time == 0) {
      return ffi::Error::Success();
    }
    args.element = *element;
    args.q = q.untyped_data();
    args.k = k.untyped_data();
    args.v = v.untyped_data();
    args.position = position.typed_data();
    args.out = out->untyped_data();
    args.vectors =
        RowsAreAligned({args.q, args.k, args.v}, args.shape.dim, *element);
    if (!AllocateScratch(scratch, args)) return scratch.error();
    return CudaStatus("decode", Decode(args, stream));
  }
};

template <typename Args>
uint64_t Workspace(const AttentionShape& shape) {
  OutputScratch measure;
  Args args = {};
  args.shape = shape;
  AllocateScratch(measure, args);
  return measure.used();
}

}  // namespace
}  // namespace transformer

TRANSFORMER_DEFINE_CUDA_HANDLERS(transformer_attention_forward,
                                 transformer::AttentionForwardKernel,
                                 .Arg<xla::ffi::AnyBuffer>()
                                     .Arg<xla::ffi::AnyBuffer>()
                                     .Arg<xla::ffi::AnyBuffer>()
                                     .Ret<xla::ffi::AnyBuffer>()
                                     .Ret<transformer::F32>());
TRANSFORMER_DEFINE_CUDA_HANDLERS(transformer_attention_backward,
                                 transformer::AttentionBackwardKernel,
                                 .Arg<xla::ffi::AnyBuffer>()
                                     .Arg<xla::ffi::AnyBuffer>()
                                     .Arg<xla::ffi::AnyBuffer>()
                                     .Arg<xla::ffi::AnyBuffer>()
                                     .Arg<transformer::F32>()
                                     .Arg<xla::ffi::AnyBuffer>()
                                     .Ret<xla::ffi::AnyBuffer>()
                                     .Ret<xla::ffi::AnyBuffer>()
                                     .Ret<xla::ffi::AnyBuffer>());
TRANSFORMER_DEFINE_CUDA_HANDLERS(transformer_decode, transformer::DecodeKernel,
                                 .Arg<xla::ffi::AnyBuffer>()
                                     .Arg<xla::ffi::AnyBuffer>()
                                     .Arg<xla::ffi::AnyBuffer>()
                                     .Arg<transformer::S32>()
                                     .Ret<xla::ffi::AnyBuffer>());

// Bytes of scratch, for an extra output; the last number is an operand's bytes.
extern "C" uint64_t transformer_attention_forward_workspace(int64_t batch,
                                                            int64_t time,
                                                            int64_t heads,
                                                            int64_t dim,
                                                            int64_t /*bytes*/) {
  return transformer::Workspace<transformer::AttentionForwardArgs>(
      {batch, time, heads, dim});
}
extern "C" uint64_t transformer_attention_backward_workspace(
    int64_t batch, int64_t time, int64_t heads, int64_t dim,
    int64_t /*bytes*/) {
  return transformer::Workspace<transformer::AttentionBackwardArgs>(
      {batch, time, heads, dim});
}
extern "C" uint64_t transformer_decode_workspace(int64_t batch, int64_t time,
                                                 int64_t heads, int64_t dim,
                                                 int64_t /*bytes*/) {
  return transformer::Workspace<transformer::DecodeArgs>(
      {batch, time, heads, dim});
}
