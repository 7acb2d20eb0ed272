// Recordings.
#include "pool/events.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "pool/event_csv.h"
#include "pool/registry.h"
#include "pool_fixture.h"

namespace jax_bfc::testing {
namespace {

// A file without a name.
class File {
 public:
  File() {
    char name[] = "/tmp/jax_bfc_events_XXXXXX";
    fd_ = mkstemp(name);
    CHECK(fd_ >= 0);
    unlink(name);
  }
  ~File() { close(fd_); }
  int fd() const { return fd_; }
  std::string Text() const {
    std::string text(static_cast<size_t>(lseek(fd_, 0, SEEK_END)), '\0');
    CHECK_EQ(pread(fd_, text.data(), text.size(), 0),
             static_cast<ssize_t>(text.size()));
    return text;
  }

 private:
  int fd_;
};

std::vector<Event> InOrder(const Recorder::Blocks& blocks, int file = -1) {
  std::vector<Event> events;
  CHECK(MergeEvents(blocks, file,
                    [&](const Event& event) { events.push_back(event); }));
  for (size_t i = 1; i < events.size(); ++i) {
    CHECK(events[i - 1].time_ns <= events[i].time_ns);
  }
  return events;
}

// Records what `body` does with the pool.
template <typename Body>
Recorder::Blocks Record(Pool& pool, const Recorder::Options& options,
                        Body&& body) {
  Recorder::Get().Start(options);
  pool.StartRecording();
  body();
  pool.StopRecording();
  return Recorder::Get().Stop();
}

TEST(EveryKindOfEventIsRecorded) {
  Pool& pool = NewPool(4 * kMiB);
  const KernelId kernel = InternKernel("events");
  const Allocation before = Get(pool, 1000, 1, kernel);
  const Recorder::Blocks blocks = Record(pool, {}, [&] {
    const Allocation a = Get(pool, 3 * kMiB / 2, 1, kernel);
    CHECK(Free(pool, Get(pool, 500, 1, kernel)));
    GetRefused(pool, 8 * kMiB, 1, kernel);
    CHECK(Free(pool, a));
    pool.CountPinned(before.id, true, false);
    pool.CountPinned(before.id, false, false);
    CHECK(Free(pool, before));
    CHECK_EQ(pool.Trim(), 2 * kMiB);
  });
  CHECK(Free(pool, Get(pool, 100)));  // no longer
  const std::vector<Event> events = InOrder(blocks);
  CHECK_EQ(blocks.events, events.size());
  CHECK_EQ(blocks.dropped, 0);
  std::string kinds;
  for (const Event& event : events) {
    kinds += std::string(kinds.empty() ? "" : " ") + EventName(event.kind);
  }
  CHECK_EQ(kinds,
           "grow held allocate allocate free failure free pin unpin free trim");
  CHECK_EQ(events[0].chunk_bytes, 2 * kMiB);
  CHECK_EQ(events[1].address, reinterpret_cast<uintptr_t>(before.ptr));
  CHECK_EQ(events[1].id, before.id);
  CHECK_EQ(events[3].requested_bytes, 500);
  CHECK_EQ(events[3].chunk_bytes, 512);
  CHECK_EQ(events[3].kernel, kernel);
  CHECK_EQ(events[4].id, events[3].id);
  CHECK_EQ(events[4].requested_bytes, 500);
  CHECK_EQ(events[5].requested_bytes, 8 * kMiB);
  CHECK_EQ(events[7].chunk_bytes, 1024);
  CHECK_EQ(events[7].kernel, kernel);
  CHECK_EQ(events[8].chunk_bytes, 1024);
  CHECK_EQ(events[9].id, before.id);
  CHECK_EQ(events[10].chunk_bytes, 2 * kMiB);
}

TEST(MemoryKeepsTheNewestEvents) {
  Pool& pool = NewPool();
  constexpr uint64_t kPairs = 10 * EventBlock::kEvents;
  Allocation last;
  const Recorder::Blocks blocks = Record(pool, {.kept_blocks = 3}, [&] {
    for (uint64_t i = 0; i < kPairs; ++i) CHECK(Free(pool, Get(pool, 100)));
    last = Get(pool, 200);
  });
  const std::vector<Event> events = InOrder(blocks);
  CHECK_EQ(blocks.events, 2 * kPairs + 2);  // and the growth
  CHECK_EQ(blocks.events - blocks.dropped, events.size());
  CHECK(events.size() >= 2 * EventBlock::kEvents);
  CHECK(events.size() <= 4 * EventBlock::kEvents);
  CHECK_EQ(events.back().id, last.id);
  CHECK(Free(pool, last));
}

TEST(AFileLosesNothingWhateverTheThreads) {
  Pool& pool = NewPool();
  const File file;
  constexpr int kThreads = 4;
  constexpr int kPairs = 5000;
  std::vector<Allocation> handed_over(kThreads);
  const Recorder::Blocks blocks = Record(pool, {.file = file.fd()}, [&] {
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; ++i) {
      threads.emplace_back([&, i] {
        for (int j = 0; j < kPairs; ++j) {
          CHECK(Free(pool, Get(pool, static_cast<size_t>(j * 37 + i) % 9000)));
        }
        handed_over[i] = Get(pool, 100);
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const Allocation& a : handed_over) CHECK(Free(pool, a));
  });
  CHECK_EQ(blocks.error, 0);
  CHECK_EQ(blocks.dropped, 0);
  const std::vector<Event> events = InOrder(blocks, file.fd());
  CHECK_EQ(events.size(), blocks.events);
  // Each allocation is freed after it was made, and no address has two owners.
  std::map<uint64_t, uint64_t> live;  // address to id
  int allocations = 0;
  for (const Event& event : events) {
    if (event.kind == EventKind::kAllocate) {
      CHECK(live.emplace(event.address, event.id).second);
      ++allocations;
    } else if (event.kind == EventKind::kFree) {
      CHECK_EQ(live.at(event.address), event.id);
      live.erase(event.address);
    }
  }
  CHECK_EQ(allocations, kThreads * (kPairs + 1));
  CHECK(live.empty());
}

TEST(ThreadsThatOnlyFreeDoNotPileUpEvents) {
  Pool& pool = NewPool();
  const File file;
  constexpr size_t kCount = 100 * EventBlock::kEvents;
  std::vector<Allocation> all;
  for (size_t i = 0; i < kCount; ++i) all.push_back(Get(pool, 1));
  const Recorder::Blocks blocks = Record(pool, {.file = file.fd()}, [&] {
    for (const Allocation& a : all) CHECK(Free(pool, a));
    CHECK(file.Text().size() >= kCount / 2 * sizeof(Event));
  });
  CHECK_EQ(blocks.events, 2 * kCount + 1);
  CHECK_EQ(InOrder(blocks, file.fd()).size(), blocks.events);
}

TEST(AFileThatCannotBeWrittenIsSaid) {
  const int full = open("/dev/full", O_RDWR);
  CHECK(full >= 0);
  Pool& pool = NewPool();
  const Recorder::Blocks blocks = Record(pool, {.file = full}, [&] {
    for (int i = 0; i < 3000; ++i) CHECK(Free(pool, Get(pool, 100)));
  });
  CHECK_EQ(blocks.error, ENOSPC);
  CHECK_EQ(blocks.dropped, blocks.events);
  close(full);
}

TEST(ThereIsOneRecordingAndNewPoolsAreInIt) {
  CHECK(!StopRecording());
  CHECK(!StartRecording({}));
  CHECK(StartRecording({})->starts_with("a recording runs already"));
  Pool& pool = HostPool(100);
  CHECK(Free(pool, Get(pool, 100)));
  const std::optional<Recorder::Blocks> blocks = StopRecording();
  CHECK_EQ(blocks->events, 3);
  CHECK(!StopRecording());
  CHECK(!Recorder::on());
}

TEST(AsTextALineIsAnEvent) {
  const File file;
  EventCsvWriter writer(file.fd());
  const KernelId label = InternLabel(InternKernel("a,b%"), "c\n");
  writer.Write({1, 0x1000, 7, 5, 256, static_cast<uint16_t>(label), 3,
                EventKind::kAllocate, 2, 9, 0});
  writer.Write({2, 0, 0, 0, 512, kNoKernel, CudaPoolIndex(0), EventKind::kGrow,
                0, 0, 0});
  CHECK_EQ(writer.Finish(), 0);
  CHECK_EQ(file.Text(),
           "Thread,Time,Action,Pointer,Size,Stream,event,id,chunk_bytes,device,"
           "kernel,label\n"
           "9,1,allocate,0x1000,5,2,allocate,7,256,cpu:3,a%2Cb%25,c\\x0a\n"
           "0,2,allocate failure,0x0,0,0,grow,0,512,cuda:0,,\n");
}

}  // namespace
}  // namespace jax_bfc::testing
