// Chunks, named by index: the pieces that an arena's regions are cut into.
#ifndef JAX_BFC_CORE_CHUNK_H_
#define JAX_BFC_CORE_CHUNK_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace jax_bfc {

using ChunkId = uint32_t;
inline constexpr ChunkId kNoChunk = ~ChunkId{0};

enum class ChunkState : uint8_t {
  kFree,      // mapped, in a bin
  kInUse,     // handed out
  kUnmapped,  // addresses without memory, in no bin
};

struct Chunk {
  uintptr_t address;
  size_t bytes;
  size_t requested_bytes;  // in use only
  ChunkId previous, next;  // neighbours by address in the same region
  ChunkId left, right;     // children in the bin's tree, free only
  ChunkId hash_next;       // chain of the address map
  ChunkState state;

  uintptr_t end() const { return address + bytes; }
};

// An array that grows by blocks and never moves an element, so that growing it
// costs the same at a million elements as at a thousand.
template <typename T, int kBlockBits = 9>
class BlockArray {
 public:
  static constexpr size_t kBlock = size_t{1} << kBlockBits;

  T& operator[](size_t i) { return blocks_[i >> kBlockBits][i & (kBlock - 1)]; }
  const T& operator[](size_t i) const {
    return blocks_[i >> kBlockBits][i & (kBlock - 1)];
  }
  size_t size() const { return size_; }
  size_t capacity() const { return blocks_.size() * kBlock; }

  // Room for `n` elements in all; throws std::bad_alloc and keeps what it has.
  void Reserve(size_t n) {
    while (capacity() < n) blocks_.push_back(std::make_unique<T[]>(kBlock));
  }

  // Appends a zeroed element and returns its index.
  // REQUIRES: size() < capacity().
  size_t Append() { return size_++; }
  // The same, with room for it made where there is none.
  size_t Grow() {
    Reserve(size_ + 1);
    return Append();
  }

 private:
  std::vector<std::unique_ptr<T[]>> blocks_;
  size_t size_ = 0;
};

// Chunk records; those given back are used again, the last first. Memory for
// them is obtained by Reserve alone.
class ChunkTable {
 public:
  Chunk& operator[](ChunkId id) { return chunks_[id]; }
  const Chunk& operator[](ChunkId id) const { return chunks_[id]; }

  void Reserve(size_t n) { chunks_.Reserve(n); }
  size_t capacity() const { return chunks_.capacity(); }

  // REQUIRES: fewer than capacity() are taken.
  ChunkId Take() {
    if (unused_ == kNoChunk) return static_cast<ChunkId>(chunks_.Append());
    const ChunkId id = unused_;
    unused_ = chunks_[id].next;
    return id;
  }
  void GiveBack(ChunkId id) {
    chunks_[id].next = unused_;
    unused_ = id;
  }

 private:
  BlockArray<Chunk> chunks_;
  ChunkId unused_ = kNoChunk;
};

}  // namespace jax_bfc

#endif  // JAX_BFC_CORE_CHUNK_H_
