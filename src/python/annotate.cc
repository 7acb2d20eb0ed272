// Comes first, as Python asks.
#define PY_SSIZE_T_CLEAN

#include "python/annotate.h"

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>

#include "ffi/scratch_hook.h"
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

// Never destroyed; a forked child, whose parent's may be locked, gets its own.
std::atomic<Ranges*> the_ranges{nullptr};

// REQUIRES: this thread has the interpreter. Takes over the reference.
void End(PyObject* end) {
  PyObject* result = PyObject_CallNoArgs(end);
  if (result == nullptr) PyErr_WriteUnraisable(end);
  Py_XDECREF(result);
  Py_DECREF(end);
}

void Allocated(KernelId kernel, size_t bytes, uint64_t id) {
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
        ranges.ends.emplace(id, end);
        return;
      }
    }
    End(end);  // they were switched off meanwhile
  });
}

void Freed(uint64_t id) {
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
      the_ranges.store(new Ranges);
    });
  }
  return *ranges;
}

// False where they are on already.
bool Start(const nb::object& begin) {
  Ranges& ranges = TheRanges();
  const std::lock_guard lock(ranges.mutex);
  if (ranges.begin != nullptr) return false;
  ranges.begin = begin.inc_ref().ptr();
  ++ranges.session;
  SetScratchHook(&kHook);
  return true;
}

void Stop() {
  Ranges& ranges = TheRanges();
  PyObject* begin = nullptr;
  std::unordered_map<uint64_t, PyObject*> ends;
  {
    const std::lock_guard lock(ranges.mutex);
    SetScratchHook(nullptr);
    begin = std::exchange(ranges.begin, nullptr);
    ends.swap(ranges.ends);
    ++ranges.session;
  }
  Py_XDECREF(begin);
  for (const auto& [id, end] : ends) End(end);
}

}  // namespace

void BindAnnotate(nb::module_& m) {
  m.def("start_ranges", &Start, "begin"_a,
        nb::sig("def start_ranges(begin: typing.Callable[[str, int], "
                "typing.Callable[[], object]]) -> bool"));
  m.def("stop_ranges", &Stop);
}

}  // namespace jax_bfc
