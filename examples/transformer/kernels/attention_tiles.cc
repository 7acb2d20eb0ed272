// Blocked causal attention, forward and backward.
//
// Scores are computed block by block, with a running maximum and sum for each
// row, so that scratch grows with the length of the sequence, not its square.
// The backward pass computes the scores again.
#include <math.h>

#include "vectors.h"

namespace transformer {
namespace TILES_ISA {

namespace {

// Key j of a block is invisible to query i of the same block where j > i.
void MaskDiagonalBlock(float* scores, float value) {
  for (int64_t i = 0; i < kBlock; ++i) {
    for (int64_t j = i + 1; j < kBlock; ++j) scores[i * kBlock + j] = value;
  }
}

// scores = exp(scores - row's maximum so far), where that maximum may rise;
// what was summed under the old one, sum and out, is scaled to the new one.
void UpdateSoftmax(float* scores, float* max, float* sum, float* out,
                   int64_t width) {
  for (int64_t i = 0; i < kBlock; ++i) {
    float* row = scores + i * kBlock;
    Floats largest = Load(row);
    for (int64_t j = kLanes; j < kBlock; j += kLanes) {
      largest = Max(largest, Load(row + j));
    }
    const float old_max = max[i];
    const float new_max = fmaxf(old_max, Largest(largest));
    Floats total = {};
    for (int64_t j = 0; j < kBlock; j += kLanes) {
      const Floats p = Exp(Load(row + j) - new_max);
      Store(p, row + j);
      total += p;
    }
    const float correction = Exp(Broadcast(old_max - new_max))[0];
    max[i] = new_max;
    sum[i] = sum[i] * correction + Sum(total);
    if (correction == 1.0f) continue;
    for (int64_t j = 0; j < width; j += kLanes) {
      Store(Load(out + i * width + j) * correction, out + i * width + j);
    }
  }
}

}  // namespace

void PackForward(const AttentionForwardArgs& args, int64_t tile) {
  const AttentionShape& shape = args.shape;
  const int64_t head = tile / shape.blocks(), block = tile % shape.blocks();
  const int64_t from = shape.Offset(head, block);
  const int64_t to = tile * shape.block_size();
  const int64_t rows = shape.RowsOf(block);
  PackTransposed(args.k + from, shape.stride(), rows, shape.dim,
                 args.k_transposed + to, shape.width());
  PackBlock(args.v + from, shape.stride(), rows, shape.dim, 1.0f,
            args.v_packed + to, shape.width());
}

void AttentionForward(const AttentionForwardArgs& args, int64_t tile,
                      int64_t slot) {
  const AttentionShape& shape = args.shape;
  const int64_t width = shape.width(), size = shape.block_size();
  // The longest rows first, so that the last tiles to be taken are short.
  const int64_t head = tile % shape.num_heads();
  const int64_t block = shape.blocks() - 1 - tile / shape.num_heads();
  const int64_t rows = shape.RowsOf(block);
  float* q = args.slots + slot * AttentionForwardArgs::SlotSize(shape);
  float* out = q + size;
  float* scores = out + size;
  float* max = scores + kBlock * kBlock;
  float* sum = max + kBlock;

  PackBlock(args.q + shape.Offset(head, block), shape.stride(), rows, shape.dim,
            args.scale, q, width);
  memset(out, 0, size * sizeof(float));
  for (int64_t i = 0; i < kBlock; ++i) {
    max[i] = -INFINITY;
    sum[i] = 0;
  }
  for (int64_t j = 0; j <= block; ++j) {
    const int64_t offset = (head * shape.blocks() + j) * size;
    Multiply<false>(kBlock, kBlock, width, {q, width, 1},
                    args.k_transposed + offset, kBlock, scores, kBlock);
    if (j == block) MaskDiagonalBlock(scores, -INFINITY);
    UpdateSoftmax(scores, max, sum, out, width);
    Multiply<true>(kBlock, width, kBlock, {scores, kBlock, 1},
                   args.v_packed + offset, width, out, width);
  }

  float* to = args.out + shape.Offset(head, block);
  float* log_sum = args.log_sum + head * shape.time + block * kBlock;
  for (int64_t i = 0; i < rows; ++i) {
    const float factor = 1.0f / sum[i];
    for (int64_t j = 0; j < shape.dim; ++j) {
      to[i * shape.stride() + j] = out[i * width + j] * factor;
    }
    log_sum[i] = max[i] + logf(sum[i]);
  }
}

void PackBackward(const AttentionBackwardArgs& args, int64_t tile) {
  const AttentionShape& shape = args.shape;
  const int64_t head = tile / shape.blocks(), block = tile % shape.blocks();
  const int64_t from = shape.Offset(head, block), stride = shape.stride();
  const int64_t to = tile * shape.block_size(), width = shape.width();
  const int64_t rows = shape.RowsOf(block), dim = shape.dim;
  PackBlock(args.q + from, stride, rows, dim, args.scale, args.q_packed + to,
            width);
  PackBlock(args.k + from, stride, rows, dim, 1.0f, args.k_packed + to, width);
  PackBlock(args.d_out + from, stride, rows, dim, 1.0f, args.d_out_packed + to,
            width);
  PackTransposed(args.k + from, stride, rows, dim, args.k_transposed + to,
                 width);
  PackTransposed(args.v + from, stride, rows, dim, args.v_transposed + to,
                 width);
  const float* log_sum = args.log_sum + head * shape.time + block * kBlock;
  for (int64_t i = 0; i < kBlock; ++i) {
    // The gradient of rows of padding is 0, whatever their probabilities.
    float dot = 0;
    for (int64_t j = 0; i < rows && j < dim; ++j) {
      dot +=
          args.out[from + i * stride + j] * args.d_out[from + i * stride + j];
    }
    args.out_dot_d_out[tile * kBlock + i] = dot;
    args.log_sum_packed[tile * kBlock + i] = i < rows ? log_sum[i] : 0;
  }
}

// Block of q by block of k. With p the probabilities and s the scores:
// d_v = p^T d_out, d_s = p * (d_out v^T - out . d_out), d_k = d_s^T q,
// d_q = d_s k. d_q is the sum over all blocks of k, which are dealt out to
// `splits` tiles in turn: each has an array of its own for its part.
void AttentionGradient(const AttentionBackwardArgs& args, int64_t tile,
                       int64_t slot) {
  const AttentionShape& shape = args.shape;
  const int64_t width = shape.width(), size = shape.block_size();
  const int64_t blocks = shape.blocks();
  const int64_t head = tile / args.splits, split = tile % args.splits;
  float* p = args.slots + slot * AttentionBackwardArgs::SlotSize(shape);
  float* d_s = p + kBlock * kBlock;
  float* d_k = d_s + kBlock * kBlock;
  float* d_v = d_k + size;
  float* d_q =
      args.d_q_parts + (split * shape.num_heads() + head) * blocks * size;
  memset(d_q, 0, blocks * size * sizeof(float));

  for (int64_t j = split; j < blocks; j += args.splits) {
    const int64_t at_k = (head * blocks + j) * size;
    memset(d_k, 0, 2 * size * sizeof(float));
    for (int64_t i = j; i < blocks; ++i) {
      const int64_t at_q = (head * blocks + i) * size;
      const float* q = args.q_packed + at_q;
      const float* d_out = args.d_out_packed + at_q;
      Multiply<false>(kBlock, kBlock, width, {q, width, 1},
                      args.k_transposed + at_k, kBlock, p, kBlock);
      if (i == j) MaskDiagonalBlock(p, -INFINITY);
      Multiply<false>(kBlock, kBlock, width, {d_out, width, 1},
                      args.v_transposed + at_k, kBlock, d_s, kBlock);
      const int64_t row = (head * blocks + i) * kBlock;
      for (int64_t r = 0; r < kBlock; ++r) {
        const float log_sum = args.log_sum_packed[row + r];
        const float dot = args.out_dot_d_out[row + r];
        for (int64_t c = r * kBlock; c < (r + 1) * kBlock; c += kLanes) {
          const Floats probability = Exp(Load(p + c) - log_sum);
          Store(probability, p + c);
          Store(probability * (Load(d_s + c) - dot), d_s + c);
        }
      }
      Multiply<true>(kBlock, width, kBlock, {p, 1, kBlock}, d_out, width, d_v,
                     width);
      Multiply<true>(kBlock, width, kBlock, {d_s, 1, kBlock}, q, width, d_k,
                     width);
      Multiply<true>(kBlock, width, kBlock, {d_s, kBlock, 1},
                     args.k_packed + at_k, width, d_q + i * size, width);
    }
    const int64_t to = shape.Offset(head, j);
    for (int64_t r = 0; r < shape.RowsOf(j); ++r) {
      const int64_t row = to + r * shape.stride();
      memcpy(args.d_k + row, d_k + r * width, shape.dim * sizeof(float));
      memcpy(args.d_v + row, d_v + r * width, shape.dim * sizeof(float));
    }
  }
}

void SumQueryGradient(const AttentionBackwardArgs& args, int64_t tile) {
  const AttentionShape& shape = args.shape;
  const int64_t head = tile / shape.blocks(), block = tile % shape.blocks();
  const int64_t part = shape.tiles() * shape.block_size();
  const float* from = args.d_q_parts + tile * shape.block_size();
  float* to = args.d_q + shape.Offset(head, block);
  for (int64_t r = 0; r < shape.RowsOf(block); ++r) {
    for (int64_t c = 0; c < shape.dim; ++c) {
      float sum = 0;
      for (int64_t i = 0; i < args.splits; ++i) {
        sum += from[i * part + r * shape.width() + c];
      }
      to[r * shape.stride() + c] = sum * args.scale;
    }
  }
}

}  // namespace TILES_ISA
}  // namespace transformer
