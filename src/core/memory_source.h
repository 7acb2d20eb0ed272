// A MemorySource obtains ranges of addresses and the memory behind them.
//
// Two kinds: one that has virtual memory (Reserve takes addresses only, Map and
// Unmap put memory behind granularity-sized pieces of them), and one that has
// not (Reserve obtains addresses and memory together, a region is one step, and
// Map and Unmap are never called).
//
// Every range that Reserve gives starts at a multiple of kMaxAlignment, so that
// every alignment can be met in it. Not thread-safe: an Arena calls it under its caller's
// lock. A refusal is an answer, never an exception.
#ifndef JAX_BFC_CORE_MEMORY_SOURCE_H_
#define JAX_BFC_CORE_MEMORY_SOURCE_H_

#include <cstddef>
#include <cstdint>
#include <limits>

namespace jax_bfc {

class MemorySource {
 public:
  virtual ~MemorySource() = default;

  // "host", "cuda_vmm", "cuda", "fake": what users configure and see.
  virtual const char* name() const = 0;

  // Steps are multiples of this. A power of two, at least 256.
  virtual size_t granularity() const = 0;

  // Whether Reserve takes addresses only.
  virtual bool has_virtual_memory() const = 0;

  // The base of a new range of `bytes`, or 0 when refused.
  // REQUIRES: `bytes` is a positive multiple of granularity().
  virtual uintptr_t Reserve(size_t bytes) = 0;

  // Gives back a whole range that Reserve gave.
  // REQUIRES: nothing in it is mapped, if the source has virtual memory.
  virtual void Release(uintptr_t base, size_t bytes) = 0;

  // Puts memory behind a part of a reserved range; false when refused.
  virtual bool Map(uintptr_t address, size_t bytes) = 0;

  // Takes it away again, exactly as it was mapped; false leaves it mapped.
  virtual bool Unmap(uintptr_t address, size_t bytes) = 0;

  // Takes over the options of another source with the same name, for what is
  // mapped from now on. Thread-safe.
  virtual void TakeOptions(const MemorySource& /*other*/) {}

  // How many bytes the source would still map at best.
  virtual size_t AvailableBytes() const {
    return std::numeric_limits<size_t>::max();
  }
  // The most addresses that should be reserved at once, more only where a
  // request needs them.
  virtual size_t LargestReservation() const {
    return std::numeric_limits<size_t>::max();
  }
  // What the device itself has left, for reports.
  virtual size_t DeviceFreeBytes() const { return AvailableBytes(); }

  // Whether work may still touch memory after it was freed: it then belongs to
  // the order of execution that it was freed in, and only after WaitIdle to
  // anybody.
  virtual bool runs_ahead() const { return false; }
  // Returns when all work submitted before is done; false where that cannot be
  // found out. Thread-safe.
  virtual bool WaitIdle() { return true; }
};

}  // namespace jax_bfc

#endif  // JAX_BFC_CORE_MEMORY_SOURCE_H_
