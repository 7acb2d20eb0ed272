#include "python/recording.h"

#include <fcntl.h>
#include <nanobind/stl/string.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>

#include "pool/event_csv.h"
#include "pool/registry.h"
#include "python/bound.h"
#include "python/gil.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace jax_bfc {
namespace {

// A recording that runs, and the descriptor of the file that its events go to.
// Ends the recording when it is destroyed, so none runs that nobody holds.
class RunningRecording {
 public:
  // `file` is duplicated, so that nobody closes it while events are written.
  RunningRecording(int file, size_t kept_events) {
    std::optional<std::string> refusal;
    {
      const GilRelease release;
      Recorder::Options options;
      options.kept_blocks =
          (kept_events + EventBlock::kEvents - 1) / EventBlock::kEvents;
      if (file >= 0) {
        file_ = options.file = fcntl(file, F_DUPFD_CLOEXEC, 0);
      }
      if (file >= 0 && file_ < 0) {
        refusal = std::strerror(errno);
      } else {
        refusal = StartRecording(options);
      }
    }
    if (refusal) {
      CloseFile();
      throw std::runtime_error("jax_bfc.record: " + *refusal);
    }
    process_ = getpid();
  }
  ~RunningRecording() {
    const GilRelease release;
    StopOnce();
    CloseFile();
  }
  RunningRecording(const RunningRecording&) = delete;
  RunningRecording& operator=(const RunningRecording&) = delete;

  // (events, dropped, errno or 0, the events as bytes), and the events as CSV
  // to `file` where the recording has a file. None where nothing was recorded:
  // after a fork, or the second time.
  nb::object Stop(int file) {
    std::optional<Recorder::Blocks> blocks;
    std::string data;
    {
      const GilRelease release;
      blocks = StopOnce();
      if (blocks && file_ >= 0) {
        EventCsvWriter writer(file);
        const bool read = MergeEvents(
            *blocks, file_, [&](const Event& event) { writer.Write(event); });
        const int error = read ? writer.Finish() : EIO;
        if (blocks->error == 0) blocks->error = error;
      } else if (blocks) {
        MergeEvents(*blocks, -1, [&](const Event& event) {
          data.append(reinterpret_cast<const char*>(&event), sizeof(event));
        });
      }
    }
    if (!blocks) return nb::none();
    return nb::make_tuple(blocks->events, blocks->dropped, blocks->error,
                          nb::bytes(data.data(), data.size()));
  }

  // Whether the process was forked since it began.
  bool IsOfAParent() const {
    const pid_t process = process_.load();
    return process != 0 && process != getpid();
  }

 private:
  // A forked child records nothing, and what it records later is not ours.
  std::optional<Recorder::Blocks> StopOnce() {
    if (process_.exchange(0) != getpid()) return std::nullopt;
    return StopRecording();
  }
  void CloseFile() {
    if (file_ >= 0) close(file_);
    file_ = -1;
  }

  int file_ = -1;
  std::atomic<pid_t> process_{0};  // in which it runs; 0 once it has ended
};

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
  if (!BoundAlready<RunningRecording>(m, "RunningRecording")) {
    nb::class_<RunningRecording>(
        m, "RunningRecording",
        "A recording that runs, until it is stopped or "
        "nobody holds it.")
        .def(nb::init<int, size_t>(), "file"_a, "kept_events"_a)
        .def("is_of_a_parent", &RunningRecording::IsOfAParent)
        .def(
            "stop", &RunningRecording::Stop, "file"_a,
            nb::sig("def stop(self, file: int) -> tuple[int, int, int, bytes] "
                    "| None"),
            "Ends it: counts, and the events as bytes, or as CSV to the file.");
  }
  m.def("write_events", &WriteCsv, "file"_a, "events"_a);
  m.def("kernel_names", &KernelNames,
        nb::sig("def kernel_names() -> list[tuple[str, str]]"));
}

}  // namespace jax_bfc
