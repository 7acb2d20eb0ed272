// Softmax over the last axis. A row's exponentials stay in scratch, in double
// precision, until their sum is known.
#include <algorithm>
#include <cmath>

#include "jax_bfc/scratch.h"

namespace ffi = xla::ffi;

static ffi::Error RowSoftmax(jax_bfc::ScratchAllocator scratch,
                             ffi::Buffer<ffi::F32> x,
                             ffi::ResultBuffer<ffi::F32> y) {
  if (x.element_count() == 0) return ffi::Error::Success();
  if (x.dimensions().size() == 0) {
    return ffi::Error::InvalidArgument(
        "row_softmax: x needs at least one axis");
  }
  const size_t columns = x.dimensions().back();
  std::optional<double*> row = scratch.Allocate<double>(columns);
  if (!row) return scratch.error();
  for (size_t start = 0; start < x.element_count(); start += columns) {
    const float* in = x.typed_data() + start;
    const double largest = *std::max_element(in, in + columns);
    double sum = 0;
    for (size_t i = 0; i < columns; ++i)
      sum += (*row)[i] = std::exp(in[i] - largest);
    for (size_t i = 0; i < columns; ++i)
      y->typed_data()[start + i] = (*row)[i] / sum;
  }
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(kRowSoftmax, RowSoftmax,
                              ffi::Ffi::Bind()
                                  .Ctx<jax_bfc::ScratchAllocator>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
