#include "pool/events.h"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <chrono>
#include <new>
#include <utility>

namespace jax_bfc {
namespace {

std::atomic<Recorder*> current{nullptr};

uint64_t ClockNs() {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(
          std::chrono::steady_clock::now().time_since_epoch())
          .count());
}

// All of it, or errno.
int WriteAll(int file, const void* data, size_t bytes, uint64_t offset) {
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written =
        pwrite(file, from, bytes, static_cast<off_t>(offset));
    if (written < 0) {
      if (errno == EINTR) continue;
      return errno;
    }
    from += written;
    offset += static_cast<uint64_t>(written);
    bytes -= static_cast<size_t>(written);
  }
  return 0;
}

bool ReadAll(int file, void* data, size_t bytes, uint64_t offset) {
  char* to = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t got = pread(file, to, bytes, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    to += got;
    offset += static_cast<uint64_t>(got);
    bytes -= static_cast<size_t>(got);
  }
  return true;
}

}  // namespace

std::atomic<bool> Recorder::on_{false};

Recorder& Recorder::Get() {
  Recorder* recorder = current.load(std::memory_order_acquire);
  if (recorder != nullptr) [[likely]]
    return *recorder;
  auto* fresh = new Recorder;
  if (current.compare_exchange_strong(recorder, fresh)) return *fresh;
  delete fresh;
  return *recorder;
}

void Recorder::StartAnewInChild() {
  on_.store(false);
  current.store(new Recorder);
}

void BlockList::PushBack(std::unique_ptr<EventBlock> block) {
  block->next = nullptr;
  EventBlock* added = block.release();
  (first_ == nullptr ? first_ : last_->next) = added;
  last_ = added;
  ++size_;
}

std::unique_ptr<EventBlock> BlockList::PopFront() {
  std::unique_ptr<EventBlock> block(first_);
  first_ = first_->next;
  --size_;
  return block;
}

void BlockList::Append(BlockList&& other) {
  while (!other.empty()) PushBack(other.PopFront());
}

void BlockList::Swap(BlockList& other) noexcept {
  std::swap(first_, other.first_);
  std::swap(last_, other.last_);
  std::swap(size_, other.size_);
}

void Recorder::Start(const Options& options) {
  // Zeroed now, so that no event pays for the first touch of a page.
  BlockList empty;
  while (options.file < 0 && empty.size() < options.kept_blocks) {
    empty.PushBack(std::make_unique<EventBlock>());
  }
  auto rare = std::make_unique_for_overwrite<EventBlock>();
  const Guard file_lock(file_mutex_);
  const Guard lock(mutex_);
  options_ = options;
  offset_ = 0;
  start_ns_ = ClockNs();
  result_ = {};
  rare_ = std::move(rare);
  empty_ = std::move(empty);
  on_.store(true, std::memory_order_relaxed);
}

uint64_t Recorder::NowNs() const { return ClockNs() - start_ns_; }

std::unique_ptr<EventBlock> Recorder::Exchange(
    std::unique_ptr<EventBlock> full) {
  const Guard lock(mutex_);
  if (full != nullptr) Keep(std::move(full));
  return Empty();
}

void Recorder::Keep(std::unique_ptr<EventBlock> block) {
  if (block->count == 0) return;
  result_.events += block->count;
  const bool full = block->full();  // else it is a slot's last
  full_.PushBack(std::move(block));
  if (options_.file >= 0) {
    waiting_blocks_.store(full_.size(), std::memory_order_relaxed);
  } else if (full && full_.size() > options_.kept_blocks) {
    result_.dropped += full_.first()->count;
    empty_.PushBack(full_.PopFront());
  }
}

std::unique_ptr<EventBlock> Recorder::Empty() {
  // Not zeroed: that would touch each page once more.
  std::unique_ptr<EventBlock> block(
      empty_.empty() ? new (std::nothrow) EventBlock : nullptr);
  if (!empty_.empty()) block = empty_.PopFront();
  if (block != nullptr) block->count = 0;
  return block;
}

void Recorder::Write() {
  const Guard file_lock(file_mutex_);
  BlockList full;
  int error = 0;
  {
    const Guard lock(mutex_);
    if (options_.file < 0) return;
    full.Swap(full_);
    waiting_blocks_.store(0, std::memory_order_relaxed);
    error = result_.error;
    // Where each of them is: what cannot be noted is not written.
    try {
      result_.written.reserve(
          std::max(result_.written.capacity(),
                   std::bit_ceil(result_.written.size() + full.size())));
    } catch (const std::bad_alloc&) {
      error = ENOMEM;
    }
  }
  BlockList done;
  while (!full.empty()) {
    std::unique_ptr<EventBlock> block = full.PopFront();
    const size_t bytes = block->count * sizeof(Event);
    if (error == 0) {
      error = WriteAll(options_.file, block->events.data(), bytes, offset_);
    }
    {
      const Guard lock(mutex_);
      if (error == 0) {
        result_.written.push_back(
            {offset_, block->events[0].time_ns, block->count});
        offset_ += bytes;
      } else {
        result_.dropped += block->count;
      }
    }
    done.PushBack(std::move(block));
  }
  const Guard lock(mutex_);
  result_.error = error;
  empty_.Append(std::move(done));
}

void Recorder::Note(Event event) {
  const Guard lock(mutex_);
  if (rare_ == nullptr) return;  // it is off
  event.time_ns = NowNs();
  if (rare_->full()) {
    if (std::unique_ptr<EventBlock> next = Empty()) {
      Keep(std::exchange(rare_, std::move(next)));
    } else {
      result_.events += rare_->count;
      result_.dropped += rare_->count;
      rare_->count = 0;
    }
  }
  rare_->events[rare_->count++] = event;
}

Recorder::Blocks Recorder::Stop() {
  on_.store(false, std::memory_order_relaxed);
  {
    const Guard lock(mutex_);
    if (rare_ != nullptr) Keep(std::move(rare_));
    rare_ = nullptr;
  }
  Write();
  const Guard file_lock(file_mutex_);
  const Guard lock(mutex_);
  Blocks result = std::move(result_);
  result.kept = std::move(full_);
  full_ = {};
  empty_ = {};
  result_ = {};
  options_ = {};
  waiting_blocks_.store(0, std::memory_order_relaxed);
  return result;
}

bool MergeEvents(const Recorder::Blocks& blocks, int file,
                 const std::function<void(const Event&)>& visit) {
  struct Source {
    uint64_t first_time_ns;
    const EventBlock* kept;  // or
    const Recorder::Blocks::Written* written;
  };
  std::vector<Source> sources;
  sources.reserve(blocks.kept.size() + blocks.written.size());
  for (const EventBlock* block = blocks.kept.first(); block != nullptr;
       block = block->next) {
    sources.push_back({block->events[0].time_ns, block, nullptr});
  }
  for (const auto& written : blocks.written) {
    sources.push_back({written.first_time_ns, nullptr, &written});
  }
  std::stable_sort(sources.begin(), sources.end(),
                   [](const Source& a, const Source& b) {
                     return a.first_time_ns < b.first_time_ns;
                   });
  struct Cursor {
    const EventBlock* block;
    std::unique_ptr<EventBlock> owned;
    uint32_t next = 0;
    size_t order;

    const Event& event() const { return block->events[next]; }
  };
  const auto later = [](const Cursor& a, const Cursor& b) {
    return std::make_pair(a.event().time_ns, a.order) >
           std::make_pair(b.event().time_ns, b.order);
  };
  std::vector<Cursor> heap;  // the earliest event is at its front
  for (size_t i = 0; i < sources.size() || !heap.empty();) {
    while (i < sources.size() &&
           (heap.empty() ||
            sources[i].first_time_ns <= heap.front().event().time_ns)) {
      Cursor cursor{sources[i].kept, nullptr, 0, i};
      if (const auto* written = sources[i].written) {
        cursor.owned = std::make_unique<EventBlock>();
        cursor.owned->count = written->count;
        if (!ReadAll(file, cursor.owned->events.data(),
                     written->count * sizeof(Event), written->offset)) {
          return false;
        }
        cursor.block = cursor.owned.get();
      }
      heap.push_back(std::move(cursor));
      std::push_heap(heap.begin(), heap.end(), later);
      ++i;
    }
    std::pop_heap(heap.begin(), heap.end(), later);
    visit(heap.back().event());
    if (++heap.back().next == heap.back().block->count) {
      heap.pop_back();
    } else {
      std::push_heap(heap.begin(), heap.end(), later);
    }
  }
  return true;
}

const char* EventName(EventKind kind) {
  constexpr const char* kNames[] = {"allocate", "free", "held",  "grow",
                                    "trim",     "pin",  "unpin", "failure"};
  return kNames[static_cast<size_t>(kind)];
}

}  // namespace jax_bfc
