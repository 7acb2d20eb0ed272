// The arithmetic of the kernels: functions that compute one tile each, with
// plain pointers to inputs, outputs and scratch, and know nothing of threads,
// XLA or where the scratch comes from. Compiled once for each instruction set.
//
// Every array is dense and row-major. `slot` selects per-thread scratch. A tile
// writes to nothing that another tile of the same pass writes to, and no result
// depends on how many threads there are.
#ifndef TRANSFORMER_TILES_H_
#define TRANSFORMER_TILES_H_

#include <stdint.h>

namespace transformer {

// Nothing of this file may be left to the linker to merge: it would pick the
// copy of one instruction set for all.
#define TRANSFORMER_INLINE inline __attribute__((always_inline))

constexpr int64_t kBlock = 64;    // rows of a tile
constexpr int64_t kPadding = 16;  // packed rows are a multiple of it long

TRANSFORMER_INLINE constexpr int64_t RoundUp(int64_t size, int64_t to) {
  return (size + to - 1) / to * to;
}

// Causal attention over q, k, v [batch, time, heads, dim]. Packed operands have
// the time of a head together, rounded up to blocks, and dim rounded up to
// kPadding, both filled with zeros.
struct AttentionShape {
  int64_t batch, time, heads, dim;

  TRANSFORMER_INLINE int64_t num_heads() const {
    return batch * heads;
  }  // of the whole batch
  TRANSFORMER_INLINE int64_t blocks() const {
    return RoundUp(time, kBlock) / kBlock;
  }
  TRANSFORMER_INLINE int64_t width() const { return RoundUp(dim, kPadding); }
  TRANSFORMER_INLINE int64_t block_size() const { return kBlock * width(); }
  TRANSFORMER_INLINE int64_t tiles() const { return num_heads() * blocks(); }

  // Element [b, first row of block, h, 0] of an unpacked array.
  TRANSFORMER_INLINE int64_t Offset(int64_t head, int64_t block) const {
    return ((head / heads * time + block * kBlock) * heads + head % heads) *
           dim;
  }
  TRANSFORMER_INLINE int64_t stride() const {
    return heads * dim;
  }  // from row to row of a head
  TRANSFORMER_INLINE int64_t RowsOf(int64_t block) const {
    const int64_t rows = time - block * kBlock;
    return rows < kBlock ? rows : kBlock;
  }
};

struct AttentionForwardArgs {
  AttentionShape shape;
  float scale;  // of the scores
  const float *q, *k, *v;
  float* out;
  float* log_sum;  // [batch, heads, time]: log of the sum of exp(scores)
  // Scratch of the whole call: per block of a head, k transposed and v.
  float *k_transposed, *v_packed;
  float* slots;

  // Per slot: block of q, block of out, scores, and each row's max and sum.
  TRANSFORMER_INLINE static int64_t SlotSize(const AttentionShape& shape) {
    return 2 * shape.block_size() + kBlock * kBlock + 2 * kBlock;
  }
};

struct AttentionBackwardArgs {
  AttentionShape shape;
  float scale;
  int64_t splits;  // of the blocks of k, see AttentionGradient
  const float *q, *k, *v, *out, *log_sum, *d_out;
  float *d_q, *d_k, *d_v;
  // Scratch of the whole call.
  float *q_packed, *k_packed, *d_out_packed, *k_transposed, *v_transposed;
  float* log_sum_packed;  // per packed row
  float* out_dot_d_out;   // per packed row
  float* d_q_parts;       // [splits, packed q]
  float* slots;

  // Per slot: probabilities, their gradient, blocks of d_k and d_v.
  TRANSFORMER_INLINE static int64_t SlotSize(const AttentionShape& shape) {
    return 2 * kBlock * kBlock + 2 * shape.block_size();
  }
};

// Cross-entropy of softmax(hidden @ head) against labels. The logits exist only
// as blocks in scratch.
struct CrossEntropyArgs {
  int64_t rows, dim, vocabulary;
  int64_t chunks;         // of the rows, see CrossEntropyGradient
  const float* hidden;    // [rows, dim]
  const float* head;      // [dim, vocabulary]
  const int32_t* labels;  // [rows], each in [0, vocabulary)
  float *loss, *log_sum;  // [rows]; log_sum is an input of the gradient
  const float* d_loss;
  float *d_hidden, *d_head;
  // Scratch of the whole call.
  float* head_packed;      // [dim, columns()]
  float* head_transposed;  // [columns(), width()]
  float* d_head_parts;     // [chunks, dim, columns()]
  float* slots;

  TRANSFORMER_INLINE int64_t width() const { return RoundUp(dim, kPadding); }
  TRANSFORMER_INLINE int64_t columns() const {
    return RoundUp(vocabulary, kPadding);
  }
  TRANSFORMER_INLINE int64_t blocks() const {
    return RoundUp(rows, kBlock) / kBlock;
  }
  TRANSFORMER_INLINE int64_t SlotSize() const {
    return kBlock * (columns() + width());
  }
};

// y [rows, columns] = x [rows, depth] @ w [depth, columns], each row of x and
// each column of w scaled to whole numbers in [-127, 127].
struct Int8Args {
  int64_t rows, depth, columns;
  const float *x, *w;
  float* y;
  // Scratch: four steps of depth lie together, as the processor's dot product
  // of bytes wants them. x is stored with 128 added.
  uint8_t* x_packed;  // [rows, padded_depth()]
  float* x_scale;     // [rows]
  int8_t* w_packed;   // [panels(), padded_depth() / 4, kPadding, 4]
  float* w_scale;     // [panels() * kPadding]
  int32_t* w_sum;     // of each column of w_packed

  TRANSFORMER_INLINE int64_t padded_depth() const { return RoundUp(depth, 4); }
  TRANSFORMER_INLINE int64_t panels() const {
    return RoundUp(columns, kPadding) / kPadding;
  }
  TRANSFORMER_INLINE int64_t row_blocks() const {
    return RoundUp(rows, kBlock) / kBlock;
  }
};

#define TRANSFORMER_DECLARE_TILES(isa)                                    \
  namespace isa {                                                         \
  /* Tile: a block of a head. */                                          \
  void PackForward(const AttentionForwardArgs& args, int64_t tile);       \
  void AttentionForward(const AttentionForwardArgs& args, int64_t tile,   \
                        int64_t slot);                                    \
  void PackBackward(const AttentionBackwardArgs& args, int64_t tile);     \
  /* Tile: every splits-th block of k of a head. */                       \
  void AttentionGradient(const AttentionBackwardArgs& args, int64_t tile, \
                         int64_t slot);                                   \
  void SumQueryGradient(const AttentionBackwardArgs& args, int64_t tile); \
  /* Tile: a row of head. */                                              \
  void PackHead(const CrossEntropyArgs& args, int64_t tile);              \
  void SumHeadGradient(const CrossEntropyArgs& args, int64_t tile);       \
  /* Tile: a column of head. */                                           \
  void TransposeHead(const CrossEntropyArgs& args, int64_t tile);         \
  /* Tile: a block of rows. */                                            \
  void CrossEntropyLoss(const CrossEntropyArgs& args, int64_t tile,       \
                        int64_t slot);                                    \
  /* Tile: one of `chunks` equal runs of blocks of rows. */               \
  void CrossEntropyGradient(const CrossEntropyArgs& args, int64_t tile,   \
                            int64_t slot);                                \
  /* Tile: a block of rows of x; kPadding columns of w; a block of y. */  \
  void QuantiseRows(const Int8Args& args, int64_t tile);                  \
  void QuantiseColumns(const Int8Args& args, int64_t tile);               \
  void Int8Multiply(const Int8Args& args, int64_t tile);                  \
  }

TRANSFORMER_DECLARE_TILES(baseline)
TRANSFORMER_DECLARE_TILES(avx2)
TRANSFORMER_DECLARE_TILES(avx512)

// The functions of one instruction set.
struct Tiles {
  const char* isa;
  decltype(&baseline::PackForward) pack_forward;
  decltype(&baseline::AttentionForward) attention_forward;
  decltype(&baseline::PackBackward) pack_backward;
  decltype(&baseline::AttentionGradient) attention_gradient;
  decltype(&baseline::SumQueryGradient) sum_query_gradient;
  decltype(&baseline::PackHead) pack_head;
  decltype(&baseline::SumHeadGradient) sum_head_gradient;
  decltype(&baseline::TransposeHead) transpose_head;
  decltype(&baseline::CrossEntropyLoss) cross_entropy_loss;
  decltype(&baseline::CrossEntropyGradient) cross_entropy_gradient;
  decltype(&baseline::QuantiseRows) quantise_rows;
  decltype(&baseline::QuantiseColumns) quantise_columns;
  decltype(&baseline::Int8Multiply) int8_multiply;
};

// The best that this processor has, or what TRANSFORMER_ISA in the environment
// names, where the processor has that.
const Tiles& TilesOfThisProcessor();

}  // namespace transformer

#endif  // TRANSFORMER_TILES_H_
