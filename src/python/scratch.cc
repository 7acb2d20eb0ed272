#include "python/scratch.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "pool/registry.h"
#include "python/gil.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace jax_bfc {
namespace {

// Frees its chunk with the last of those who hold it: the block itself, and
// every buffer and DLPack capsule that was exported from it.
struct Lease {
  Allocation allocation;
  ~Lease() {
    if (Pool* pool = FindPool(Pool::PoolOf(allocation.id))) {
      pool->Free(allocation.ptr, allocation.id);
    }
  }
};

struct Scratch {
  std::shared_ptr<Lease> lease;
  size_t nbytes;

  std::shared_ptr<Lease> Get() const {
    if (lease == nullptr) {
      throw nb::value_error(
          "jax_bfc.scratch: used after its with block ended; what is to live "
          "longer must be exported (DLPack, memoryview) inside the block.");
    }
    return lease;
  }
  void* Data() const { return Get()->allocation.ptr; }
};

int GetBuffer(PyObject* self, Py_buffer* view, int flags) {
  const auto* scratch = nb::inst_ptr<Scratch>(self);
  if (scratch->lease == nullptr) {
    view->obj = nullptr;
    PyErr_SetString(PyExc_BufferError,
                    "jax_bfc.scratch: exported after its with block ended.");
    return -1;
  }
  if (PyBuffer_FillInfo(view, self, scratch->lease->allocation.ptr,
                        static_cast<Py_ssize_t>(scratch->nbytes), 0,
                        flags) != 0) {
    return -1;
  }
  view->internal = new std::shared_ptr<Lease>(scratch->lease);
  return 0;
}

void ReleaseBuffer(PyObject*, Py_buffer* view) {
  delete static_cast<std::shared_ptr<Lease>*>(view->internal);
}

PyType_Slot kTypeSlots[] = {
    {Py_bf_getbuffer, reinterpret_cast<void*>(GetBuffer)},
    {Py_bf_releasebuffer, reinterpret_cast<void*>(ReleaseBuffer)},
    {0, nullptr}};

nb::object DLPack(const Scratch& scratch, const nb::kwargs& kwargs) {
  auto* holder = new std::shared_ptr<Lease>(scratch.Get());
  nb::capsule owner(holder, [](void* p) noexcept {
    delete static_cast<std::shared_ptr<Lease>*>(p);
  });
  nb::object array = nb::cast(
      nb::ndarray<nb::array_api, uint8_t, nb::ndim<1>, nb::device::cpu>(
          (*holder)->allocation.ptr, {scratch.nbytes}, owner));
  return array.attr("__dlpack__")(**kwargs);
}

// A Scratch, or the report as a dict where it does not fit.
nb::object Allocate(uint32_t ordinal, size_t nbytes, size_t alignment) {
  std::unique_ptr<OomReport> report;
  std::optional<Allocation> made;
  {
    const GilRelease release;
    made = HostPool(ordinal).Allocate(kPython, nbytes, alignment, &report);
  }
  if (made) {
    return nb::cast(Scratch{std::make_shared<Lease>(*made), nbytes});
  }
  nb::dict failure;
  failure["requested"] = report->requested_bytes;
  failure["limit"] = report->limit_bytes;
  failure["in_use"] = report->bytes_in_use;
  failure["largest_free"] = report->largest_free_bytes;
  failure["report"] = report->Text();
  return failure;
}

}  // namespace

void BindScratch(nb::module_& m) {
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
          [](const Scratch&) { return std::make_pair(1, 0); },
          nb::sig("def __dlpack_device__(self) -> tuple[int, int]"),
          "(1, 0): DLPack's CPU device.")
      .def(
          "close", [](Scratch& s) { s.lease.reset(); },
          "Ends the block's own hold on the memory.");
  m.def("allocate", &Allocate, "ordinal"_a, "nbytes"_a, "alignment"_a,
        nb::sig("def allocate(ordinal: int, nbytes: int, alignment: int) -> "
                "Scratch | dict[str, typing.Any]"));
}

}  // namespace jax_bfc
