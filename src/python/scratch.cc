#include "python/scratch.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <new>
#include <optional>
#include <string>
#include <utility>

#include "ffi/scratch_hook.h"
#include "python/bound.h"
#include "python/gil.h"
#include "python/pools.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace jax_bfc {
namespace {

// Frees its chunk with the last of those who hold it: the block itself, and
// every buffer and DLPack capsule that was exported from it.
struct Lease {
  Allocation allocation{};
  bool made = false;
  Lease() = default;
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  ~Lease() {
    if (!made) return;
    if (Pool* pool = FindPool(Pool::PoolOf(allocation.id))) {
      pool->Free(allocation.ptr, allocation.id);
      if (const ScratchHook* hook = TheScratchHook()) {
        hook->freed(allocation.id);
      }
    }
  }
};

using Hold = std::shared_ptr<Lease>;  // an export's

struct Scratch {
  std::shared_ptr<Lease> lease;
  size_t nbytes;
  uint32_t pool;
  // What __cuda_array_interface__ says of the order of work: the stream, or
  // nothing where the consumer need not wait for any.
  std::optional<uintptr_t> stream;

  std::shared_ptr<Lease> Get() const {
    if (lease == nullptr) {
      throw nb::value_error(
          "jax_bfc.scratch: used after its with block ended; what is to live "
          "longer must be exported (DLPack, memoryview) inside the block.");
    }
    return lease;
  }
  void* Data() const { return Get()->allocation.ptr; }
  bool on_cuda() const { return IsCudaPool(pool); }
  // As DLPack numbers devices: kDLCPU is 1, kDLCUDA 2.
  int device_type() const { return on_cuda() ? 2 : 1; }
  int device_id() const {
    return on_cuda() ? static_cast<int>(pool - kMaxHostPools) : 0;
  }
};

int GetBuffer(PyObject* self, Py_buffer* view, int flags) {
  const auto* scratch = nb::inst_ptr<Scratch>(self);
  if (scratch->lease == nullptr) {
    view->obj = nullptr;
    PyErr_SetString(PyExc_BufferError,
                    "jax_bfc.scratch: exported after its with block ended.");
    return -1;
  }
  if (scratch->on_cuda()) {
    view->obj = nullptr;
    PyErr_SetString(PyExc_BufferError,
                    "jax_bfc.scratch: memory of a CUDA device has no buffer; "
                    "use DLPack or __cuda_array_interface__.");
    return -1;
  }
  // Python's C code is no place for an exception.
  std::unique_ptr<Hold> hold(new (std::nothrow) Hold(scratch->lease));
  if (hold == nullptr) {
    view->obj = nullptr;
    PyErr_NoMemory();
    return -1;
  }
  if (PyBuffer_FillInfo(view, self, scratch->lease->allocation.ptr,
                        static_cast<Py_ssize_t>(scratch->nbytes), 0,
                        flags) != 0) {
    return -1;
  }
  view->internal = hold.release();
  return 0;
}

void ReleaseBuffer(PyObject*, Py_buffer* view) {
  delete static_cast<Hold*>(view->internal);
}

PyType_Slot kTypeSlots[] = {
    {Py_bf_getbuffer, reinterpret_cast<void*>(GetBuffer)},
    {Py_bf_releasebuffer, reinterpret_cast<void*>(ReleaseBuffer)},
    {0, nullptr}};

nb::object DLPack(const Scratch& scratch, const nb::kwargs& kwargs) {
  auto hold = std::make_unique<Hold>(scratch.Get());
  void* const data = (*hold)->allocation.ptr;
  nb::capsule owner(hold.get(),
                    [](void* p) noexcept { delete static_cast<Hold*>(p); });
  hold.release();
  nb::object array = nb::cast(nb::ndarray<nb::array_api, uint8_t, nb::ndim<1>>(
      data, {scratch.nbytes}, owner, {}, nb::dtype<uint8_t>(),
      scratch.device_type(), scratch.device_id()));
  // nanobind's array makes no copies; NumPy's does, with the same arguments.
  if (!scratch.on_cuda() && kwargs.contains("copy") &&
      kwargs["copy"].is(nb::handle(Py_True))) {
    array = nb::module_::import_("numpy").attr("from_dlpack")(array);
  }
  return array.attr("__dlpack__")(**kwargs);
}

// Version 3 of the interface, as CuPy, Numba and PyTorch read it.
nb::dict CudaArrayInterface(const Scratch& scratch) {
  if (!scratch.on_cuda()) {
    // So that hasattr() says no, as consumers expect of host memory.
    throw nb::attribute_error("__cuda_array_interface__");
  }
  nb::dict d;
  d["shape"] = nb::make_tuple(scratch.nbytes);
  d["typestr"] = "|u1";
  d["data"] = nb::make_tuple(reinterpret_cast<uintptr_t>(scratch.Data()),
                             /*read_only=*/false);
  d["version"] = 3;
  if (scratch.stream) {
    d["stream"] = *scratch.stream;
  } else {
    d["stream"] = nb::none();
  }
  return d;
}

// A Scratch, or the report as a dict where it does not fit.
nb::object Allocate(uint32_t index, size_t nbytes, size_t alignment,
                    std::optional<uintptr_t> stream) {
  std::unique_ptr<OomReport> report;
  // Before the chunk, which it frees whatever fails from there on.
  auto lease = std::make_shared<Lease>();
  {
    const GilRelease release;
    Pool& pool = PoolOrThrow(index);
    uint32_t order = Pool::kNoStream;
    if (stream) {
      std::string why;
      const std::optional<uint32_t> found =
          CudaStreamOf(pool, index - kMaxHostPools,
                       reinterpret_cast<cuda::Stream>(*stream), &why);
      if (!found) throw std::runtime_error("jax_bfc: " + why);
      order = *found;
    }
    lease->made = pool.Allocate({.kernel = kPython,
                                 .bytes = nbytes,
                                 .alignment = alignment,
                                 .stream = order},
                                &lease->allocation, &report);
    if (const ScratchHook* hook = TheScratchHook();
        lease->made && hook != nullptr) {
      hook->allocated(kPython, nbytes, lease->allocation.id);
    }
  }
  if (lease->made) {
    return nb::cast(Scratch{std::move(lease), nbytes, index, stream});
  }
  nb::dict failure;
  failure["requested"] = report->requested_bytes;
  failure["limit"] = report->limit_bytes;
  failure["in_use"] = report->bytes_in_use;
  failure["largest_free"] = report->largest_free_bytes;
  failure["report"] = report->Text();
  return failure;
}

void BindClass(nb::module_& m) {
  nb::class_<Scratch>(m, "Scratch", nb::type_slots(kTypeSlots),
                      "Scratch memory inside a `with jax_bfc.scratch()` block.")
      .def_prop_ro(
          "ptr",
          [](const Scratch& s) {
            return reinterpret_cast<uintptr_t>(s.Data());
          },
          "The address of the first byte. ValueError after the block.")
      .def_ro("nbytes", &Scratch::nbytes, "The size, in bytes.")
      .def("__dlpack__", &DLPack,
           "A DLPack capsule of uint8[nbytes] that keeps the memory.")
      .def(
          "__dlpack_device__",
          [](const Scratch& s) {
            return std::make_pair(s.device_type(), s.device_id());
          },
          nb::sig("def __dlpack_device__(self) -> tuple[int, int]"),
          "DLPack's device: (1, 0) for the CPU, (2, ordinal) for CUDA.")
      .def_prop_ro(
          "__cuda_array_interface__", &CudaArrayInterface,
          nb::sig("def __cuda_array_interface__(self) -> dict[str, "
                  "typing.Any]"),
          "uint8[nbytes], on CUDA devices only. Does not keep the memory: "
          "valid inside the block.")
      .def(
          "close", [](Scratch& s) { s.lease.reset(); },
          "Ends the block's own hold on the memory.");
}

}  // namespace

void BindScratch(nb::module_& m) {
  if (!BoundAlready<Scratch>(m, "Scratch")) BindClass(m);
  m.def(
      "allocate", &Allocate, "index"_a, "nbytes"_a, "alignment"_a,
      "stream"_a.none() = nb::none(),
      nb::sig("def allocate(index: int, nbytes: int, alignment: int, "
              "stream: int | None = None) -> Scratch | dict[str, typing.Any]"));
}

}  // namespace jax_bfc
