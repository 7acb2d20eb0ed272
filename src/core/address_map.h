// Finds a chunk by the address of its first byte.
//
// Linear hashing (Litwin, VLDB 1980): the table grows by one bucket for each
// chunk more, so that no insertion ever pays for a rehash of all. Chains run
// through the chunks themselves. Expected O(1), four bytes a chunk, which
// Reserve alone obtains.
#ifndef JAX_BFC_CORE_ADDRESS_MAP_H_
#define JAX_BFC_CORE_ADDRESS_MAP_H_

#include <bit>
#include <cstddef>
#include <cstdint>

#include "core/chunk.h"
#include "core/size_class.h"

namespace jax_bfc {

class AddressMap {
 public:
  AddressMap() {
    buckets_.Reserve(1);
    buckets_[buckets_.Append()] = kNoChunk;
  }

  // Room for `n` chunks in all; throws std::bad_alloc and keeps what it has.
  void Reserve(size_t n) { buckets_.Reserve(n); }

  // REQUIRES: there is room, and no chunk in the map starts at its address.
  void Insert(ChunkTable& chunks, ChunkId id) {
    if (++size_ > buckets_.size()) AddBucket(chunks);
    ChunkId& head = buckets_[BucketOf(chunks[id].address)];
    chunks[id].hash_next = head;
    head = id;
  }

  // REQUIRES: the chunk is in the map.
  void Erase(ChunkTable& chunks, ChunkId id) {
    ChunkId* link = &buckets_[BucketOf(chunks[id].address)];
    while (*link != id) link = &chunks[*link].hash_next;
    *link = chunks[id].hash_next;
    --size_;
  }

  ChunkId Find(const ChunkTable& chunks, uintptr_t address) const {
    ChunkId id = buckets_[BucketOf(address)];
    while (id != kNoChunk && chunks[id].address != address) {
      id = chunks[id].hash_next;
    }
    return id;
  }

  size_t size() const { return size_; }

 private:
  static uint32_t Hash(uintptr_t address) {
    return static_cast<uint32_t>(((address / kQuantum) * 0x9E3779B97F4A7C15u) >>
                                 32);
  }

  size_t BucketOf(uintptr_t address) const {
    const size_t hash = Hash(address);
    const size_t bucket = hash & mask_;
    return bucket < buckets_.size() ? bucket : hash & (mask_ >> 1);
  }

  // Divides the chain of one bucket between it and a new one.
  void AddBucket(ChunkTable& chunks) {
    const size_t added = buckets_.Append();
    mask_ = std::bit_ceil(added + 1) - 1;
    ChunkId* keep = &buckets_[added & (mask_ >> 1)];
    ChunkId* move = &buckets_[added];
    for (ChunkId id = *keep; id != kNoChunk; id = chunks[id].hash_next) {
      ChunkId*& end = (Hash(chunks[id].address) & mask_) == added ? move : keep;
      *end = id;
      end = &chunks[id].hash_next;
    }
    *keep = *move = kNoChunk;
  }

  BlockArray<ChunkId, 12> buckets_;
  size_t mask_ = 0;  // the least 2^k - 1 that covers every bucket
  size_t size_ = 0;
};

}  // namespace jax_bfc

#endif  // JAX_BFC_CORE_ADDRESS_MAP_H_
