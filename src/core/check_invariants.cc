// Arena::CheckInvariants: recomputes from the chunks what the arena keeps, and
// compares.
#include <algorithm>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "core/arena.h"

namespace jax_bfc {
namespace {

std::string At(const char* what, uintptr_t address) {
  return std::string(what) + " at address " + std::to_string(address);
}

// Every chunk in the bin's tree, in order.
void Collect(const ChunkTable& chunks, ChunkId id,
             std::vector<ChunkId>* in_order) {
  if (id == kNoChunk) return;
  Collect(chunks, chunks[id].left, in_order);
  in_order->push_back(id);
  Collect(chunks, chunks[id].right, in_order);
}

}  // namespace

std::optional<std::string> Arena::CheckInvariants() const {
  ArenaStats sum;
  std::set<ChunkId> free;
  size_t chunks = 0, unmapped = 0;
  for (const auto& [base, first] : regions_.entries()) {
    ++sum.regions;
    uintptr_t expected = base;
    ChunkId previous = kNoChunk;
    for (ChunkId id = first; id != kNoChunk; id = chunks_[id].next) {
      const Chunk& c = chunks_[id];
      ++chunks;
      sum.reserved_bytes += c.bytes;
      if (c.address != expected || c.previous != previous || c.bytes == 0) {
        return At("I1 tiled: gap or overlap", c.address);
      }
      if (previous != kNoChunk && c.state == chunks_[previous].state &&
          c.state != ChunkState::kInUse) {
        return At("I2 coalesced: like neighbours", c.address);
      }
      if (c.address % kQuantum != 0 || c.bytes % kQuantum != 0) {
        return At("I4 aligned: chunk", c.address);
      }
      if (map_.Find(chunks_, c.address) != id) {
        return At("I5 findable: chunk not found", c.address);
      }
      if (c.state == ChunkState::kInUse) {
        if (c.requested_bytes > c.bytes) {
          return At("I6 counted: more requested than the chunk has", c.address);
        }
        ++sum.chunks_in_use;
        sum.bytes_in_use += c.bytes;
        sum.requested_bytes += c.requested_bytes;
      } else if (c.state == ChunkState::kFree) {
        free.insert(id);
        ++sum.free_chunks;
        sum.free_bytes += c.bytes;
      } else {
        ++unmapped;
        const auto found = unmapped_.entries().find(c.address);
        if (found == unmapped_.entries().end() || found->second != id) {
          return At("I5 findable: unmapped chunk not listed", c.address);
        }
      }
      previous = id;
      expected = c.end();
    }
  }
  if (map_.size() != chunks) {
    return "I5 findable: " + std::to_string(map_.size()) +
           " addresses map to a chunk, there are " + std::to_string(chunks);
  }
  if (unmapped_.entries().size() != unmapped)
    return "I5 findable: unmapped chunks";

  size_t binned = 0;
  for (int bin = 0; bin < kNumBins; ++bin) {
    std::vector<ChunkId> in_order;
    Collect(chunks_, bins_.root(bin), &in_order);
    binned += in_order.size();
    for (size_t i = 0; i < in_order.size(); ++i) {
      const Chunk& c = chunks_[in_order[i]];
      if (!free.contains(in_order[i]) || BinForSize(c.bytes) != bin) {
        return At("I3 binned: chunk in the wrong bin", c.address);
      }
      if (i > 0) {
        const Chunk& p = chunks_[in_order[i - 1]];
        if (std::tie(p.bytes, p.address) >= std::tie(c.bytes, c.address)) {
          return At("I3 binned: bin out of order", c.address);
        }
      }
    }
    if (in_order.empty() != (bins_.NextBin(bin) != bin)) {
      return "I3 binned: bitmap of bin " + std::to_string(bin);
    }
  }
  if (binned != free.size()) {
    return "I3 binned: " + std::to_string(binned) + " chunks in bins, " +
           std::to_string(free.size()) + " are free";
  }

  for (const auto& [address, bytes] : steps_.entries()) {
    ++sum.steps;
    sum.mapped_bytes += bytes;
  }
  sum.largest_free_bytes = 0;
  for (const ChunkId id : free) {
    sum.largest_free_bytes =
        std::max(sum.largest_free_bytes, chunks_[id].bytes);
  }
  const ArenaStats now = stats();
  sum.peak_bytes_in_use = now.peak_bytes_in_use;
  sum.peak_mapped_bytes = now.peak_mapped_bytes;
  sum.growths = now.growths;
  sum.trims = now.trims;
  if (!(sum == now) || sum.mapped_bytes != sum.bytes_in_use + sum.free_bytes ||
      now.growths - now.trims != now.steps) {
    return "I6 counted: a counter differs from the sum of the chunks";
  }
  if (now.mapped_bytes > limit_bytes_ ||
      now.peak_bytes_in_use < now.bytes_in_use ||
      now.peak_mapped_bytes < now.mapped_bytes) {
    return "I7 bounded: " + std::to_string(now.mapped_bytes) +
           " bytes mapped, limit " + std::to_string(limit_bytes_);
  }
  return std::nullopt;
}

}  // namespace jax_bfc
