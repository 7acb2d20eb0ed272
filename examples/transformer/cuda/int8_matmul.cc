// XLA handlers of the dynamically quantised matrix product on the GPU: quantise
// both operands, multiply in int8 by cuBLASLt, scale the sums.
#include <climits>
#include <string>

#include "cuda_scratch.h"
#include "matmul.h"
#include "operands.h"
#include "quantise.h"

namespace transformer {

namespace {

// 127 * 127 * kMaxDepth is still a number of 31 bits.
constexpr int64_t kMaxDepth = 131072;
static_assert(127 * 127 * kMaxDepth < INT_MAX);

template <typename Source>
bool AllocateScratch(Source& scratch, QuantisedArgs& args, char** workspace) {
  const int64_t rows = args.Padded(args.rows), depth = args.Padded(args.depth),
                columns = args.Padded(args.columns);
  return AllocateInto(scratch, Count({rows, depth}), &args.x_whole) &&
         AllocateInto(scratch, Count({columns, depth}), &args.w_whole) &&
         AllocateInto(scratch, Count({rows}), &args.x_largest) &&
         AllocateInto(scratch, Count({columns}), &args.w_largest) &&
         AllocateInto(scratch, Count({rows, columns}), &args.product) &&
         AllocateInto(scratch, kMatmulWorkspaceBytes, workspace);
}

struct Int8MatmulKernel {
  template <typename Source>
  static ffi::Error Run(cudaStream_t stream, Source& scratch, Any x, Any w,
                        F32Result y) {
    const auto x_dims = x.dimensions(), w_dims = w.dimensions();
    if (x_dims.size() != 2 || w_dims.size() != 2 || x_dims[1] != w_dims[0]) {
      return Wrong("int8_matmul", "x " + ShapeText(x_dims) +
                                      " must be (rows, depth) and w " +
                                      ShapeText(w_dims) +
                                      " (depth, columns), with the same depth");
    }
    QuantisedArgs args = {};
    args.rows = x_dims[0];
    args.depth = x_dims[1];
    args.columns = w_dims[1];
    if (args.depth > kMaxDepth || args.rows > INT_MAX - kPad ||
        args.columns > (int64_t{1} << 23)) {
      return Wrong("int8_matmul", "a depth of " + std::to_string(args.depth) +
                                      " and " + std::to_string(args.columns) +
                                      " columns are too large; the most is " +
                                      std::to_string(kMaxDepth) + " and 2^23");
    }
    if (static_cast<int64_t>(y->element_count()) != args.rows * args.columns) {
      return Wrong("int8_matmul", "y must be (rows, columns)");
    }
    const auto element = CommonElement({x.element_type(), w.element_type()});
    if (!element) return WrongElement("int8_matmul");
    if (y->element_count() == 0) return ffi::Error::Success();
    args.element = *element;
    args.x = x.untyped_data();
    args.w = w.untyped_data();
    args.y = y->typed_data();
    if (args.depth == 0) {
      return CudaStatus("int8_matmul",
                        cudaMemsetAsync(args.y, 0, y->size_bytes(), stream));
    }
    char* workspace = nullptr;
    if (!AllocateScratch(scratch, args, &workspace)) return scratch.error();

    ffi::Error error = CudaStatus("int8_matmul", Quantise(args, stream));
    if (error.failure()) return error;
    Matmul matmul = {MatrixElement::kInt8, MatrixElement::kInt32,
                     args.Padded(args.rows), args.Padded(args.columns),
                     args.Padded(args.depth)};
    matmul.transpose_b = true;
    error = transformer::Run(matmul, args.x_whole, args.w_whole, args.product,
                             workspace, stream);
    if (error.failure()) return error;
    return CudaStatus("int8_matmul", Dequantise(args, stream));
  }
};

}  // namespace
}  // namespace transformer

TRANSFORMER_DEFINE_CUDA_HANDLERS(transformer_int8_matmul,
                                 transformer::Int8MatmulKernel,
                                 .Arg<xla::ffi::AnyBuffer>()
                                     .Arg<xla::ffi::AnyBuffer>()
                                     .Ret<transformer::F32>());

// Bytes of scratch, for an extra output; the last number is an operand's bytes.
extern "C" uint64_t transformer_int8_matmul_workspace(int64_t rows,
                                                      int64_t depth,
                                                      int64_t columns,
                                                      int64_t /*bytes*/) {
  transformer::OutputScratch measure;
  transformer::QuantisedArgs args = {};
  args.rows = rows;
  args.depth = depth;
  args.columns = columns;
  char* workspace = nullptr;
  transformer::AllocateScratch(measure, args, &workspace);
  return measure.used();
}
