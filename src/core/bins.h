// The free chunks of an arena, ordered by (size, address).
//
// A bin holds the chunks of one size class in a treap (Seidel and Aragon,
// Randomized Search Trees, Algorithmica 1996) whose priorities are a hash of
// the chunk's index; a bitmap of two levels finds the next bin that is not
// empty. Insert, erase and search cost O(log n) expected in the chunks of one
// bin, whatever their sizes, and touch one node where the bin holds one chunk.
#ifndef JAX_BFC_CORE_BINS_H_
#define JAX_BFC_CORE_BINS_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "core/chunk.h"
#include "core/size_class.h"

namespace jax_bfc {

class BinSet {
 public:
  BinSet() { roots_.fill(kNoChunk); }

  void Insert(ChunkTable& chunks, ChunkId id);
  void Erase(ChunkTable& chunks, ChunkId id);

  // The first chunk in order that is not before (bytes, address), or kNoChunk.
  ChunkId LowerBound(const ChunkTable& chunks, size_t bytes,
                     uintptr_t address) const;
  // The first chunk of at least `bytes`.
  ChunkId BestFit(const ChunkTable& chunks, size_t bytes) const {
    return LowerBound(chunks, bytes, 0);
  }
  // The same, erased: one descent instead of two.
  ChunkId TakeBestFit(ChunkTable& chunks, size_t bytes);
  // The chunk after `id` in order, or kNoChunk.
  ChunkId Next(const ChunkTable& chunks, ChunkId id) const {
    return LowerBound(chunks, chunks[id].bytes, chunks[id].address + 1);
  }
  // The largest chunk (highest address on a tie), or kNoChunk.
  ChunkId Largest(const ChunkTable& chunks) const;

  ChunkId root(int bin) const { return roots_[bin]; }
  // The first bin from `bin` on that is not empty, or kNumBins.
  int NextBin(int bin) const;

 private:
  // Takes the chunk that `link` names out of the tree of its bin.
  void Unlink(ChunkTable& chunks, int bin, ChunkId* link);

  static constexpr int kWords = (kNumBins + 63) / 64;
  static_assert(kWords <= 64);

  std::array<ChunkId, kNumBins> roots_;
  std::array<uint64_t, kWords> bins_{};  // bit: the bin is not empty
  uint64_t words_ = 0;                   // bit: the word is not zero
};

}  // namespace jax_bfc

#endif  // JAX_BFC_CORE_BINS_H_
