// A recording of what happens in all pools, event by event.
//
// A slot that is watched writes its events to a block of its own, under the
// lock that it holds anyway. A full block goes to the recorder, and the slot
// gets an empty one. With a file, the next thread that has got an allocation
// writes what is full once it holds no lock, and others wait for it; so does
// one that has a block to give while kMostWaiting wait. So nothing is lost, and
// memory is bounded. Without a file the recorder keeps the newest blocks.
//
// What is rare (growth, trims, pins, failures) goes to one shared block.
//
// The time is read under the slot's lock, so each block is in order, and
// MergeEvents puts the blocks in order.
//
// Thread-safe; the recorder's lock is taken after all others.
#ifndef JAX_BFC_POOL_EVENTS_H_
#define JAX_BFC_POOL_EVENTS_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "pool/kernel_table.h"

namespace jax_bfc {

enum class EventKind : uint8_t {
  kAllocate,
  kFree,
  kHeld,     // was in use when the recording began
  kGrow,     // chunk_bytes were mapped
  kTrim,     // chunk_bytes were unmapped
  kPin,      // chunk_bytes are held by a CUDA graph from now on
  kUnpin,    // no longer
  kFailure,  // a request that did not fit
};

inline constexpr uint32_t kNoKernel = ~uint32_t{0};

struct Event {
  uint64_t time_ns;  // since the recording began
  uint64_t address;
  uint64_t id;               // of the allocation, see Pool
  uint64_t requested_bytes;  // of an allocation, also when it is freed
  uint64_t chunk_bytes;
  KernelId kernel;  // or kNoKernel
  EventKind kind;
  uint8_t pool;
  uint8_t lane;
  uint8_t slot;
};
static_assert(sizeof(Event) == 48);

struct EventBlock {
  static constexpr uint32_t kEvents = 1024;
  uint32_t count = 0;
  std::array<Event, kEvents> events;

  bool full() const { return count == kEvents; }
};

class Recorder {
 public:
  struct Options {
    int file = -1;             // a descriptor to write to, or -1 for none
    size_t kept_blocks = 256;  // at most so many full ones, without a file
  };
  // What was recorded: in memory, or where each block is in the file.
  struct Blocks {
    std::vector<std::unique_ptr<EventBlock>> kept;
    struct Written {
      uint64_t offset;
      uint64_t first_time_ns;
      uint32_t count;
    };
    std::vector<Written> written;
    uint64_t events = 0;   // all that happened
    uint64_t dropped = 0;  // of those, too old for memory, or not written
    int error = 0;         // errno of the first write that failed
  };

  // The one of this process, see registry.h for who starts and stops it. Never
  // destroyed.
  static Recorder& Get();
  static bool on() { return on_.load(std::memory_order_relaxed); }
  // In a forked child: nothing is recorded. The parent's locks may be held.
  static void StartAnewInChild();

  // REQUIRES: it is off, and no slot is watched.
  void Start(const Options& options);
  // REQUIRES: it is on, and no slot is watched any more.
  Blocks Stop();

  uint64_t NowNs() const;

  // Under a slot's lock: takes what the slot has recorded, null if nothing yet,
  // for an empty block. Null where the host has no memory; the block was lost.
  std::unique_ptr<EventBlock> Exchange(std::unique_ptr<EventBlock> full);
  // With no lock held, after each allocation: writes full blocks to the file.
  void WriteFull() {
    if (waiting_blocks_.load(std::memory_order_relaxed) > 0) Write();
  }
  // Of the rare kinds; sets the time. Any lock may be held.
  void Note(Event event);

 private:
  Recorder() = default;
  void Write();
  void Keep(std::unique_ptr<EventBlock> block);  // under mutex_
  std::unique_ptr<EventBlock> Empty();           // under mutex_

  static constexpr size_t kMostWaiting = 64;
  static std::atomic<bool> on_;

  std::mutex file_mutex_;  // taken first; held while writing
  uint64_t offset_ = 0;

  std::mutex mutex_;  // guards all below
  Options options_;
  uint64_t start_ns_ = 0;
  std::unique_ptr<EventBlock> rare_;
  std::deque<std::unique_ptr<EventBlock>> full_;
  std::vector<std::unique_ptr<EventBlock>> empty_;
  Blocks result_;
  std::atomic<size_t> waiting_blocks_{0};  // full ones, for a file
};

// Every event, in the order of time. At most so many blocks of the file are in
// memory at once as overlap in time: about one for each slot. False where the
// file cannot be read.
bool MergeEvents(const Recorder::Blocks& blocks, int file,
                 const std::function<void(const Event&)>& visit);

// The name of a kind in files: "allocate", "free", "held", ...
const char* EventName(EventKind kind);

}  // namespace jax_bfc

#endif  // JAX_BFC_POOL_EVENTS_H_
