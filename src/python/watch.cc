// Comes first, as Python asks.
#define PY_SSIZE_T_CLEAN

#include "python/watch.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <map>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "pool/oom_hook.h"
#include "pool/registry.h"
#include "pool/warn.h"
#include "python/bound.h"
#include "python/gil.h"
#include "python/pools.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace jax_bfc {
namespace {

// (index, name of the device) of the pools that exist.
nb::list Pools() {
  nb::list pools;
  for (const Pool* pool : AllPools()) {
    pools.append(nb::make_tuple(pool->index(), pool->device()));
  }
  return pools;
}

// As ByteState has them.
constexpr const char* kByteStates[] = {"in_use", "cached", "waiting", "free",
                                       "unmapped"};

// ---------------------------------------------------------------------------
// Peaks.

// An open block, for as long as the object lives or until Close(). In a forked
// child, whose pools are others, it reads 0.
class PeakBlock {
 public:
  PeakBlock(Pool* pool, uint32_t index)
      : pool_(pool), index_(index), block_(pool->OpenPeak()) {}
  PeakBlock(PeakBlock&& other) noexcept
      : pool_(std::exchange(other.pool_, nullptr)),
        index_(other.index_),
        block_(other.block_) {}
  // REQUIRES: this thread has the interpreter, as for Close().
  ~PeakBlock() { Close(); }

  Peak Read() const {
    Pool* pool = Get();
    return pool == nullptr ? Peak() : pool->ReadPeak(block_);
  }
  void Close() {
    Pool* const pool = Get();
    pool_ = nullptr;
    if (pool == nullptr) return;
    const GilRelease release;
    pool->ClosePeak(block_);
  }

 private:
  Pool* Get() const {
    return pool_ != nullptr && FindPool(index_) == pool_ ? pool_ : nullptr;
  }
  Pool* pool_;
  uint32_t index_;
  uint64_t block_;
};

PeakBlock OpenPeak(uint32_t index) {
  const GilRelease release;
  return PeakBlock(&PoolOrThrow(index), index);
}

nb::tuple ReadPeak(const PeakBlock& block) {
  Peak peak;
  {
    const GilRelease release;
    peak = block.Read();
  }
  nb::dict by_kernel;
  for (const auto& [kernel, bytes] : peak.by_kernel) {
    by_kernel[KernelName(kernel).c_str()] = bytes;
  }
  return nb::make_tuple(peak.bytes, by_kernel);
}

// ---------------------------------------------------------------------------
// Out of memory.

// A list of callables, or null: read and changed with the interpreter only, so that
// no hook is between reading it and taking a reference when it is let go.
PyObject* oom_callbacks = nullptr;

// REQUIRES: this thread has the interpreter.
bool CallEach(PyObject* callbacks, const std::string& text) {
  const Py_ssize_t count = PyTuple_Size(callbacks);
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* callback = PyTuple_GetItem(callbacks, i);  // borrowed
    PyObject* result = PyObject_CallFunction(
        callback, "s#", text.data(), static_cast<Py_ssize_t>(text.size()));
    if (result == nullptr) PyErr_WriteUnraisable(callback);
    Py_XDECREF(result);
  }
  return count > 0;
}

bool CallOomCallbacks(const OomReport& report) {
  bool called = false;
  try {
    const std::string text = report.Text();
    CallPython([&] {
      if (oom_callbacks == nullptr) return;
      // Of this moment, since a callback may add and remove.
      PyObject* callbacks = PySequence_Tuple(oom_callbacks);
      if (callbacks == nullptr) {
        PyErr_WriteUnraisable(oom_callbacks);
        return;
      }
      called = CallEach(callbacks, text);
      Py_DECREF(callbacks);
    });
  } catch (
      const std::bad_alloc&) {  // the host's memory is at its end: no report
  }
  return called;
}

// None: nobody is called any more, as at the interpreter's end, and what they hold
// is let go.
void SetOomCallbacks(const nb::object& callbacks) {
  PyObject* const list =
      callbacks.is_none() ? nullptr : callbacks.inc_ref().ptr();
  SetOomHook(list == nullptr ? nullptr : CallOomCallbacks);
  if (list == nullptr) SetWarnHook(nullptr);  // at the interpreter's end
  Py_XDECREF(std::exchange(oom_callbacks, list));
}

// ---------------------------------------------------------------------------
// Snapshots.

// (limit, [(lane, stream or None, [(address, bytes, requested, kernel or None,
// state, starts a region, pinned)])]).
nb::tuple Snapshot(uint32_t index) {
  PoolSnapshot snapshot;
  {
    const GilRelease release;
    snapshot = PoolOrThrow(index).Snapshot();
  }
  std::map<KernelId, nb::object> names;  // one text for each
  const auto name = [&](std::optional<KernelId> kernel) -> nb::object {
    if (!kernel) return nb::none();
    nb::object& text = names[*kernel];
    if (!text.is_valid()) text = nb::cast(KernelName(*kernel));
    return text;
  };
  nb::list lanes;
  for (const SnapshotLane& lane : snapshot.lanes) {
    nb::list chunks;
    for (const SnapshotChunk& c : lane.chunks) {
      chunks.append(nb::make_tuple(c.address, c.bytes, c.requested_bytes,
                                   name(c.kernel),
                                   kByteStates[static_cast<size_t>(c.state)],
                                   c.starts_region, c.pinned));
    }
    lanes.append(nb::make_tuple(lane.lane, lane.stream, chunks));
  }
  return nb::make_tuple(snapshot.limit_bytes, lanes);
}

// A RuntimeWarning on the thread that allocated.
void WarnInPython(const std::string& text) {
  CallPython([&] {
    if (PyErr_WarnEx(PyExc_RuntimeWarning, text.c_str(), 1) != 0) {
      PyErr_WriteUnraisable(nullptr);  // warnings are errors
    }
  });
}

}  // namespace

void BindWatch(nb::module_& m) {
  SetWarnHook(WarnInPython);
  m.def("pools", &Pools, nb::sig("def pools() -> list[tuple[int, str]]"));
  if (!BoundAlready<PeakBlock>(m, "PeakBlock")) {
    nb::class_<PeakBlock>(m, "PeakBlock", "An open block of jax_bfc.peak().")
        .def("read", &ReadPeak,
             nb::sig("def read(self) -> tuple[int, dict[str, int]]"),
             "The peak so far in bytes, and by kernel.")
        .def("close", &PeakBlock::Close, "Ends it: it reads 0 from now on.");
  }
  m.def("open_peak", &OpenPeak, "index"_a);
  m.def("snapshot", &Snapshot, "index"_a,
        nb::sig("def snapshot(index: int) -> tuple[int, list[tuple[int, int | "
                "None, list[tuple[int, int, int, str | None, str, bool, "
                "bool]]]]]"));
  m.def("set_oom_callbacks", &SetOomCallbacks, "callbacks"_a.none(),
        nb::sig("def set_oom_callbacks(callbacks: list[typing.Any] | None) -> "
                "None"));
}

}  // namespace jax_bfc
