// The last layer of a language model and its loss in one: logits are computed
// for a block of rows at a time, and again in the backward pass.
#include <math.h>

#include "vectors.h"

namespace transformer {
namespace TILES_ISA {

namespace {

int64_t RowsOf(const CrossEntropyArgs& args, int64_t block) {
  const int64_t rows = args.rows - block * kBlock;
  return rows < kBlock ? rows : kBlock;
}

// Columns of padding get a logit of -infinity, a probability of 0.
void ComputeLogits(const CrossEntropyArgs& args, int64_t block, float* logits) {
  const int64_t rows = RowsOf(args, block), columns = args.columns();
  Multiply<false>(rows, columns, args.dim,
                  {args.hidden + block * kBlock * args.dim, args.dim, 1},
                  args.head_packed, columns, logits, columns);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = args.vocabulary; j < columns; ++j) {
      logits[i * columns + j] = -INFINITY;
    }
  }
}

}  // namespace

void PackHead(const CrossEntropyArgs& args, int64_t tile) {
  float* to = args.head_packed + tile * args.columns();
  memcpy(to, args.head + tile * args.vocabulary,
         args.vocabulary * sizeof(float));
  for (int64_t j = args.vocabulary; j < args.columns(); ++j) to[j] = 0;
}

void TransposeHead(const CrossEntropyArgs& args, int64_t tile) {
  float* to = args.head_transposed + tile * args.width();
  for (int64_t i = 0; i < args.width(); ++i) {
    const bool padding = i >= args.dim || tile >= args.vocabulary;
    to[i] = padding ? 0 : args.head[i * args.vocabulary + tile];
  }
}

void CrossEntropyLoss(const CrossEntropyArgs& args, int64_t tile,
                      int64_t slot) {
  const int64_t columns = args.columns();
  float* logits = args.slots + slot * args.SlotSize();
  ComputeLogits(args, tile, logits);
  for (int64_t i = 0; i < RowsOf(args, tile); ++i) {
    const float* row = logits + i * columns;
    Floats largest = Load(row);
    for (int64_t j = kLanes; j < columns; j += kLanes) {
      largest = Max(largest, Load(row + j));
    }
    const float max = Largest(largest);
    Floats sum = {};
    for (int64_t j = 0; j < columns; j += kLanes)
      sum += Exp(Load(row + j) - max);
    const float log_sum = max + logf(Sum(sum));
    args.log_sum[tile * kBlock + i] = log_sum;
    args.loss[tile * kBlock + i] =
        log_sum - row[args.labels[tile * kBlock + i]];
  }
}

// d_logits = (softmax(logits) - one_hot(label)) * d_loss. d_head is a sum over
// all rows: each chunk has an array of its own for its part.
void CrossEntropyGradient(const CrossEntropyArgs& args, int64_t tile,
                          int64_t slot) {
  const int64_t columns = args.columns(), width = args.width();
  float* logits = args.slots + slot * args.SlotSize();
  float* d_hidden = logits + kBlock * columns;
  float* d_head = args.d_head_parts + tile * args.dim * columns;
  memset(d_head, 0, args.dim * columns * sizeof(float));

  const int64_t first = args.blocks() * tile / args.chunks;
  const int64_t last = args.blocks() * (tile + 1) / args.chunks;
  for (int64_t block = first; block < last; ++block) {
    const int64_t rows = RowsOf(args, block), start = block * kBlock;
    ComputeLogits(args, block, logits);
    for (int64_t i = 0; i < rows; ++i) {
      float* row = logits + i * columns;
      const float log_sum = args.log_sum[start + i];
      const float d_loss = args.d_loss[start + i];
      for (int64_t j = 0; j < columns; j += kLanes) {
        Store(Exp(Load(row + j) - log_sum) * d_loss, row + j);
      }
      row[args.labels[start + i]] -= d_loss;
    }
    Multiply<false>(rows, width, columns, {logits, columns, 1},
                    args.head_transposed, width, d_hidden, width);
    for (int64_t i = 0; i < rows; ++i) {
      memcpy(args.d_hidden + (start + i) * args.dim, d_hidden + i * width,
             args.dim * sizeof(float));
    }
    Multiply<true>(args.dim, columns, rows,
                   {args.hidden + start * args.dim, 1, args.dim}, logits,
                   columns, d_head, columns);
  }
}

void SumHeadGradient(const CrossEntropyArgs& args, int64_t tile) {
  const int64_t part = args.dim * args.columns();
  const float* from = args.d_head_parts + tile * args.columns();
  float* to = args.d_head + tile * args.vocabulary;
  for (int64_t j = 0; j < args.vocabulary; ++j) {
    float sum = 0;
    for (int64_t i = 0; i < args.chunks; ++i) sum += from[i * part + j];
    to[j] = sum;
  }
}

}  // namespace TILES_ISA
}  // namespace transformer
