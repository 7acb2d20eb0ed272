// XLA handlers of top-k/top-p sampling: of the k largest logits of a row, the
// smallest set whose probability reaches p, and of that a token at random.
#include <algorithm>
#include <cmath>
#include <limits>

#include "parallel.h"
#include "scratch_source.h"

namespace transformer {

namespace {

using F32 = ffi::Buffer<ffi::F32>;

struct Candidate {
  float logit;
  int32_t token;
};

// Largest first; of equal ones the smallest token, so that the order is total.
bool Before(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

// Rows that one thread takes at a time.
constexpr int64_t kRowsOfATile = 8;

// A token of one row; `uniform` in [0, 1) is the random number that decides.
int32_t SampleRow(const float* logits, int64_t vocabulary, float uniform,
                  float temperature, int64_t top_k, float top_p,
                  Candidate* candidates) {
  constexpr float kMax = std::numeric_limits<float>::max();
  for (int64_t i = 0; i < vocabulary; ++i) {
    const float logit = logits[i] / temperature;
    // Sorting needs numbers: what is none can't be chosen, if anything else
    // can.
    candidates[i].logit =
        std::isnan(logit) ? -kMax : std::clamp(logit, -kMax, kMax);
    candidates[i].token = static_cast<int32_t>(i);
  }
  std::partial_sort(candidates, candidates + top_k, candidates + vocabulary,
                    Before);
  // From here on the logits of the candidates are their probabilities.
  const float largest = candidates[0].logit;
  double total = 0;
  for (int64_t i = 0; i < top_k; ++i) {
    candidates[i].logit = std::exp(candidates[i].logit - largest);
    total += candidates[i].logit;
  }
  int64_t kept = 0;
  double kept_total = 0;
  while (kept < top_k && (kept == 0 || kept_total < top_p * total)) {
    kept_total += candidates[kept++].logit;
  }
  double left = uniform * kept_total;
  for (int64_t i = 0; i < kept; ++i) {
    left -= candidates[i].logit;
    if (left < 0) return candidates[i].token;
  }
  return candidates[kept - 1].token;
}

struct SampleKernel {
  template <typename Source>
  static ffi::Error Run(ffi::ThreadPool& pool, Source& scratch, F32 logits,
                        F32 uniform, ffi::Result<ffi::Buffer<ffi::S32>> tokens,
                        int64_t max_threads, float temperature, int64_t top_k,
                        float top_p) {
    const auto dims = logits.dimensions();
    if (dims.size() == 0 || dims.back() == 0 || dims.back() > INT32_MAX) {
      return ffi::Error::InvalidArgument(
          "transformer.sample: logits must be (..., vocabulary), with at least "
          "one token and fewer than 2^31");
    }
    const int64_t vocabulary = dims.back();
    const int64_t rows = logits.element_count() / vocabulary;
    if (static_cast<int64_t>(uniform.element_count()) != rows ||
        static_cast<int64_t>(tokens->element_count()) != rows) {
      return ffi::Error::InvalidArgument(
          "transformer.sample: needs one random number for each of the " +
          std::to_string(rows) + " rows of logits, and gives one token");
    }
    if (!(temperature > 0) || top_k < 0 || !(top_p > 0)) {
      return ffi::Error::InvalidArgument(
          "transformer.sample: temperature and top_p must be positive, and "
          "top_k not negative (0: all); they are " +
          std::to_string(temperature) + ", " + std::to_string(top_p) + ", " +
          std::to_string(top_k));
    }
    if (top_k == 0 || top_k > vocabulary) top_k = vocabulary;

    const int64_t tiles = (rows + kRowsOfATile - 1) / kRowsOfATile;
    const int64_t slots = Slots(pool, tiles, max_threads);
    const auto candidates =
        scratch.template Allocate<Candidate>(Count({slots, vocabulary}));
    if (!candidates) return scratch.error();
    ParallelFor(pool, tiles, slots, [&](int64_t tile, int64_t slot) {
      const int64_t end = std::min(rows, (tile + 1) * kRowsOfATile);
      for (int64_t row = tile * kRowsOfATile; row < end; ++row) {
        tokens->typed_data()[row] =
            SampleRow(logits.typed_data() + row * vocabulary, vocabulary,
                      uniform.typed_data()[row], temperature, top_k, top_p,
                      *candidates + slot * vocabulary);
      }
    });
    return ffi::Error::Success();
  }
};

}  // namespace
}  // namespace transformer

TRANSFORMER_DEFINE_HANDLERS(transformer_sample, transformer::SampleKernel,
                            .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                .Ret<xla::ffi::Buffer<xla::ffi::S32>>()
                                .Attr<int64_t>("max_threads")
                                .Attr<float>("temperature")
                                .Attr<int64_t>("top_k")
                                .Attr<float>("top_p"));

extern "C" uint64_t transformer_sample_workspace(int64_t rows,
                                                 int64_t vocabulary,
                                                 int64_t threads) {
  using transformer::Candidate;
  static_cast<void>(rows);
  transformer::OutputScratch measure;
  measure.Allocate<Candidate>(transformer::Count({threads, vocabulary}));
  return measure.used();
}
