// Comes first, as Python asks.
#define PY_SSIZE_T_CLEAN

#include "python/annotate.h"

#include <nanobind/stl/optional.h>
#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>

#include "ffi/scratch_hook.h"
#include "python/bound.h"
#include "python/gil.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace jax_bfc {
namespace {

// The open ranges, by allocation: what ends each, a callable. The mutex may be
// taken with the interpreter's lock held, never the other way round.
struct Ranges {
  std::mutex mutex;
  PyObject* begin = nullptr;  // a callable that opens one; null: none are
  uint64_t session = 0;       // how often they were switched on and off
  std::unordered_map<uint64_t, PyObject*> ends;
};

// Never destroyed; begun anew in a forked child, whose parent's may be locked.
std::atomic<Ranges*> the_ranges{nullptr};

// REQUIRES: this thread has the interpreter. Takes over the reference.
void End(PyObject* end) {
  PyObject* result = PyObject_CallNoArgs(end);
  if (result == nullptr) PyErr_WriteUnraisable(end);
  Py_XDECREF(result);
  Py_DECREF(end);
}

void Begin(KernelId kernel, size_t bytes, uint64_t id) {
  const std::string name = KernelName(kernel);
  CallPython([&] {
    Ranges& ranges = *the_ranges.load();
    PyObject* begin = nullptr;
    uint64_t session = 0;
    {
      const std::lock_guard lock(ranges.mutex);
      if (ranges.begin == nullptr) return;
      begin = Py_NewRef(ranges.begin);
      session = ranges.session;
    }
    PyObject* end = PyObject_CallFunction(begin, "s#n", name.data(),
                                          static_cast<Py_ssize_t>(name.size()),
                                          static_cast<Py_ssize_t>(bytes));
    if (end == nullptr) PyErr_WriteUnraisable(begin);
    Py_DECREF(begin);
    if (end == nullptr) return;
    {
      const std::lock_guard lock(ranges.mutex);
      if (ranges.session == session) {
        try {
          ranges.ends.emplace(id, end);
          return;
        } catch (const std::bad_alloc&) {  // the range ends at once
        }
      }
    }
    End(end);  // they were switched off meanwhile
  });
}

// Called from handlers, by way of C: without memory there is no range.
void Allocated(KernelId kernel, size_t bytes, uint64_t id) noexcept {
  try {
    Begin(kernel, bytes, id);
  } catch (const std::bad_alloc&) {
  }
}

void Freed(uint64_t id) noexcept {
  Ranges& ranges = *the_ranges.load();
  PyObject* end = nullptr;
  {
    const std::lock_guard lock(ranges.mutex);
    const auto found = ranges.ends.find(id);
    if (found == ranges.ends.end()) return;
    end = found->second;
    ranges.ends.erase(found);
  }
  CallPython([&] { End(end); });
}

constexpr ScratchHook kHook = {Allocated, Freed};

Ranges& TheRanges() {
  Ranges* ranges = the_ranges.load();
  if (ranges == nullptr) {
    ranges = new Ranges;
    the_ranges.store(ranges);
    pthread_atfork(nullptr, nullptr, [] {
      SetScratchHook(nullptr);
      // In the same place, as there may be no memory: a thread of the parent's
      // may have been in the middle of the old one, which is left as it is.
      Ranges* parents = the_ranges.load();
      const uint64_t session = parents->session;
      (new (parents) Ranges)->session = session + 1;
    });
  }
  return *ranges;
}

// Ends them if they are those of `session`, or whichever there are.
void Stop(std::optional<uint64_t> session) {
  Ranges& ranges = TheRanges();
  PyObject* begin = nullptr;
  std::unordered_map<uint64_t, PyObject*> ends;
  {
    const std::lock_guard lock(ranges.mutex);
    if (session && *session != ranges.session) return;
    SetScratchHook(nullptr);
    begin = std::exchange(ranges.begin, nullptr);
    ends.swap(ranges.ends);
    ++ranges.session;
  }
  CallPython([&] {
    Py_XDECREF(begin);
    for (const auto& [id, end] : ends) End(end);
  });
}

// Who switched them on: they are on for as long as it lives, or until Close().
class RangesOwner {
 public:
  explicit RangesOwner(uint64_t session) : session_(session) {}
  RangesOwner(RangesOwner&& other) noexcept
      : session_(std::exchange(other.session_, std::nullopt)) {}
  ~RangesOwner() { Close(); }
  void Close() {
    if (const auto session = std::exchange(session_, std::nullopt)) {
      Stop(session);
    }
  }

 private:
  std::optional<uint64_t> session_;
};

// Nothing where they are on already.
std::optional<RangesOwner> Start(const nb::object& begin) {
  Ranges& ranges = TheRanges();
  const std::lock_guard lock(ranges.mutex);
  if (ranges.begin != nullptr) return std::nullopt;
  ranges.begin = begin.inc_ref().ptr();
  ++ranges.session;
  SetScratchHook(&kHook);
  return RangesOwner(ranges.session);
}

}  // namespace

void BindAnnotate(nb::module_& m) {
  if (!BoundAlready<RangesOwner>(m, "Ranges")) {
    nb::class_<RangesOwner>(m, "Ranges", "An open block of jax_bfc.annotate().")
        .def("close", &RangesOwner::Close, "Ends it. May be repeated.");
  }
  m.def("start_ranges", &Start, "begin"_a,
        nb::sig("def start_ranges(begin: typing.Callable[[str, int], "
                "typing.Callable[[], object]]) -> Ranges | None"));
  m.def("stop_ranges", [] { Stop(std::nullopt); });
}

}  // namespace jax_bfc
