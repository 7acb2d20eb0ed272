#include "core/bins.h"

#include <bit>

namespace jax_bfc {
namespace {

bool Before(const ChunkTable& chunks, ChunkId a, ChunkId b) {
  const Chunk& x = chunks[a];
  const Chunk& y = chunks[b];
  return x.bytes != y.bytes ? x.bytes < y.bytes : x.address < y.address;
}

// A mix of the index (the finaliser of MurmurHash3): a bijection, so that no
// two chunks have the same priority.
uint32_t Priority(ChunkId id) {
  uint32_t x = id + 1;
  x = (x ^ (x >> 16)) * 0x85EBCA6Bu;
  x = (x ^ (x >> 13)) * 0xC2B2AE35u;
  return x ^ (x >> 16);
}

}  // namespace

void BinSet::Insert(ChunkTable& chunks, ChunkId id) {
  const int bin = BinForSize(chunks[id].bytes);
  ChunkId* link = &roots_[bin];
  if (*link == kNoChunk) {
    *link = id;
    chunks[id].left = chunks[id].right = kNoChunk;
    bins_[bin / 64] |= uint64_t{1} << (bin % 64);
    words_ |= uint64_t{1} << (bin / 64);
    return;
  }
  while (*link != kNoChunk && Priority(*link) > Priority(id)) {
    link =
        Before(chunks, id, *link) ? &chunks[*link].left : &chunks[*link].right;
  }
  // What hangs here is divided into what comes before `id` and what after.
  ChunkId rest = *link;
  *link = id;
  ChunkId* before = &chunks[id].left;
  ChunkId* after = &chunks[id].right;
  while (rest != kNoChunk) {
    if (Before(chunks, rest, id)) {
      *before = rest;
      before = &chunks[rest].right;
      rest = *before;
    } else {
      *after = rest;
      after = &chunks[rest].left;
      rest = *after;
    }
  }
  *before = *after = kNoChunk;
}

void BinSet::Erase(ChunkTable& chunks, ChunkId id) {
  const int bin = BinForSize(chunks[id].bytes);
  ChunkId* link = &roots_[bin];
  while (*link != id) {
    link =
        Before(chunks, id, *link) ? &chunks[*link].left : &chunks[*link].right;
  }
  Unlink(chunks, bin, link);
}

ChunkId BinSet::TakeBestFit(ChunkTable& chunks, size_t bytes) {
  int bin = BinForSize(bytes);
  ChunkId* best = nullptr;
  for (ChunkId* link = &roots_[bin]; *link != kNoChunk;) {
    Chunk& c = chunks[*link];
    if (c.bytes < bytes) {
      link = &c.right;
    } else {
      best = link;
      link = &c.left;
    }
  }
  if (best == nullptr) {
    bin = NextBin(bin + 1);
    if (bin == kNumBins) return kNoChunk;
    best = &roots_[bin];
    while (chunks[*best].left != kNoChunk) best = &chunks[*best].left;
  }
  const ChunkId id = *best;
  Unlink(chunks, bin, best);
  return id;
}

void BinSet::Unlink(ChunkTable& chunks, int bin, ChunkId* link) {
  ChunkId before = chunks[*link].left;
  ChunkId after = chunks[*link].right;
  while (before != kNoChunk && after != kNoChunk) {
    if (Priority(before) > Priority(after)) {
      *link = before;
      link = &chunks[before].right;
      before = *link;
    } else {
      *link = after;
      link = &chunks[after].left;
      after = *link;
    }
  }
  *link = before != kNoChunk ? before : after;
  if (roots_[bin] != kNoChunk) return;
  if ((bins_[bin / 64] &= ~(uint64_t{1} << (bin % 64))) == 0) {
    words_ &= ~(uint64_t{1} << (bin / 64));
  }
}

ChunkId BinSet::LowerBound(const ChunkTable& chunks, size_t bytes,
                           uintptr_t address) const {
  const int bin = BinForSize(bytes);
  ChunkId best = kNoChunk;
  for (ChunkId id = roots_[bin]; id != kNoChunk;) {
    const Chunk& c = chunks[id];
    if (c.bytes < bytes || (c.bytes == bytes && c.address < address)) {
      id = c.right;
    } else {
      best = id;
      id = c.left;
    }
  }
  if (best != kNoChunk) return best;
  const int next = NextBin(bin + 1);
  if (next == kNumBins) return kNoChunk;
  best = roots_[next];
  while (chunks[best].left != kNoChunk) best = chunks[best].left;
  return best;
}

ChunkId BinSet::Largest(const ChunkTable& chunks) const {
  if (words_ == 0) return kNoChunk;
  const int word = std::bit_width(words_) - 1;
  ChunkId id = roots_[word * 64 + std::bit_width(bins_[word]) - 1];
  while (chunks[id].right != kNoChunk) id = chunks[id].right;
  return id;
}

int BinSet::NextBin(int bin) const {
  if (bin >= kNumBins) return kNumBins;
  int word = bin / 64;
  const uint64_t here = bins_[word] & (~uint64_t{0} << (bin % 64));
  if (here != 0) return word * 64 + std::countr_zero(here);
  if (word + 1 >= kWords) return kNumBins;
  const uint64_t words = words_ & (~uint64_t{0} << (word + 1));
  if (words == 0) return kNumBins;
  word = std::countr_zero(words);
  return word * 64 + std::countr_zero(bins_[word]);
}

}  // namespace jax_bfc
