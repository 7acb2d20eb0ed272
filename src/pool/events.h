// A recording of what happens in all pools, event by event.
//
// A slot that is watched writes its events to a block of its own, under the
// lock that it holds anyway. A full block goes to the recorder, and the slot
// gets an empty one. With a file, a thread that allocates or frees while full
// blocks wait writes them once it holds no lock, and others wait for it. So
// nothing is lost, and memory is bounded: at most two blocks for each slot.
// Without a file the recorder keeps the newest blocks.
//
// What is rare (growth, trims, pins, failures) goes to one shared block.
//
// The time is read under the slot's lock, so each block is in order, and
// MergeEvents puts the blocks in order.
//
// Where the host has no memory for a block, its events are lost and counted;
// nothing throws.
//
// Thread-safe.
#ifndef JAX_BFC_POOL_EVENTS_H_
#define JAX_BFC_POOL_EVENTS_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/locks.h"
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

inline constexpr uint16_t kNoKernel = 0xFFFF;
static_assert(kMaxKernels < kNoKernel);

struct Event {
  uint64_t time_ns;  // since the recording began
  uint64_t address;
  uint64_t id;               // of the allocation, see Pool
  uint64_t requested_bytes;  // of an allocation, also when it is freed
  uint64_t chunk_bytes;
  uint16_t kernel;  // its KernelId, or kNoKernel
  uint16_t pool;
  EventKind kind;
  uint8_t lane;
  uint8_t slot;
  uint8_t unused;  // 0
};
static_assert(sizeof(Event) == 48);

struct EventBlock {
  static constexpr uint32_t kEvents = 1024;
  uint32_t count = 0;
  EventBlock* next = nullptr;  // in a BlockList
  std::array<Event, kEvents> events;

  bool full() const { return count == kEvents; }
};

// Blocks in a row, which it owns. Adding one takes no memory.
class BlockList {
 public:
  BlockList() = default;
  BlockList(BlockList&& other) noexcept { Swap(other); }
  BlockList& operator=(BlockList&& other) noexcept {
    Swap(other);
    return *this;
  }
  ~BlockList() {
    while (first_ != nullptr) PopFront();
  }
  bool empty() const { return first_ == nullptr; }
  size_t size() const { return size_; }
  const EventBlock* first() const { return first_; }
  void PushBack(std::unique_ptr<EventBlock> block);
  std::unique_ptr<EventBlock> PopFront();
  void Append(BlockList&& other);
  void Swap(BlockList& other) noexcept;

 private:
  EventBlock* first_ = nullptr;
  EventBlock* last_ = nullptr;
  size_t size_ = 0;
};

class Recorder {
 public:
  struct Options {
    int file = -1;             // a descriptor to write to, or -1 for none
    size_t kept_blocks = 256;  // at most so many full ones, without a file
  };
  // What was recorded: in memory, or where each block is in the file.
  struct Blocks {
    BlockList kept;
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

  // REQUIRES: it is off, and no slot is watched. May throw std::bad_alloc, and
  // then it stays off.
  void Start(const Options& options);
  // REQUIRES: it is on, and no slot is watched any more.
  Blocks Stop();

  uint64_t NowNs() const;

  // Under a slot's lock: takes what the slot has recorded, null if nothing yet,
  // for an empty block. Null where the host has no memory for one.
  std::unique_ptr<EventBlock> Exchange(std::unique_ptr<EventBlock> full);
  // With no lock held, after what may have filled a block: writes full ones to
  // the file.
  static void WriteFull() {
    Recorder& recorder = Get();
    if (recorder.waiting_blocks_.load(std::memory_order_relaxed) > 0) {
      recorder.Write();
    }
  }
  // Of the rare kinds; sets the time. Any lock may be held.
  void Note(Event event);

 private:
  Recorder() = default;
  void Write();
  void Keep(std::unique_ptr<EventBlock> block);  // under mutex_
  std::unique_ptr<EventBlock> Empty();           // under mutex_

  static std::atomic<bool> on_;

  Mutex file_mutex_{LockRank::kRecorderFile};  // held while writing
  uint64_t offset_ JAX_BFC_GUARDED_BY(file_mutex_) = 0;

  Mutex mutex_{LockRank::kRecorder};  // guards all below
  Options options_;
  uint64_t start_ns_ = 0;
  std::unique_ptr<EventBlock> rare_;
  BlockList full_;
  BlockList empty_;
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
