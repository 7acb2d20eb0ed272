#include "python/recording.h"

#include <fcntl.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "pool/event_csv.h"
#include "pool/registry.h"
#include "python/gil.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace jax_bfc {
namespace {

// Of the running recording; -1 where it has none. Ours, so that nobody closes
// it while events are written.
std::atomic<int> spool{-1};

// None, or why it was not started.
std::optional<std::string> Start(int file, size_t kept_events) {
  const GilRelease release;
  Recorder::Options options;
  options.kept_blocks =
      (kept_events + EventBlock::kEvents - 1) / EventBlock::kEvents;
  if (file >= 0) {
    options.file = fcntl(file, F_DUPFD_CLOEXEC, 0);
    if (options.file < 0) return std::string(std::strerror(errno));
  }
  std::optional<std::string> refusal = StartRecording(options);
  if (refusal) {
    if (options.file >= 0) close(options.file);
  } else {
    spool = options.file;
  }
  return refusal;
}

// (events, dropped, errno or 0, the events as bytes), and the events as CSV to
// `file` where there was one. None where nothing was recorded: after a fork.
nb::object Stop(int file) {
  std::optional<Recorder::Blocks> blocks;
  std::string data;
  {
    const GilRelease release;
    blocks = StopRecording();
    if (blocks) {
      const int from = spool.exchange(-1);
      if (from >= 0) {
        EventCsvWriter writer(file);
        const bool read = MergeEvents(
            *blocks, from, [&](const Event& event) { writer.Write(event); });
        const int error = read ? writer.Finish() : EIO;
        if (blocks->error == 0) blocks->error = error;
        close(from);
      } else {
        MergeEvents(*blocks, -1, [&](const Event& event) {
          data.append(reinterpret_cast<const char*>(&event), sizeof(event));
        });
      }
    }
  }
  if (!blocks) return nb::none();
  return nb::make_tuple(blocks->events, blocks->dropped, blocks->error,
                        nb::bytes(data.data(), data.size()));
}

// Of what Stop gave; errno or 0.
int WriteCsv(int file, const nb::bytes& data) {
  const char* from = data.c_str();
  const size_t count = data.size() / sizeof(Event);
  const GilRelease release;
  EventCsvWriter writer(file);
  for (size_t i = 0; i < count; ++i) {
    Event event;
    std::memcpy(&event, from + i * sizeof(Event), sizeof(Event));
    writer.Write(event);
  }
  return writer.Finish();
}

nb::list KernelNames() {
  nb::list names;
  const uint32_t count = KernelCount();
  for (uint32_t i = 0; i < count; ++i) {
    const auto [kernel, label] = KernelAndLabel(i);
    names.append(nb::make_tuple(kernel, label));
  }
  return names;
}

}  // namespace

void BindRecording(nb::module_& m) {
  m.def("start_recording", &Start, "file"_a, "kept_events"_a);
  m.def("stop_recording", &Stop, "file"_a,
        nb::sig("def stop_recording(file: int) -> tuple[int, int, int, bytes] "
                "| None"));
  m.def("write_events", &WriteCsv, "file"_a, "events"_a);
  m.def("kernel_names", &KernelNames,
        nb::sig("def kernel_names() -> list[tuple[str, str]]"));
}

}  // namespace jax_bfc
