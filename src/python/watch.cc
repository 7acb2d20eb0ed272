#include "python/watch.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <string>
#include <vector>

#include "pool/registry.h"
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

// ---------------------------------------------------------------------------
// Peaks.

// An open block. In a forked child, whose pools are others, it reads 0.
struct PeakBlock {
  Pool* pool;
  uint32_t index;
  uint64_t block;

  Pool* Get() const { return FindPool(index) == pool ? pool : nullptr; }
};

PeakBlock OpenPeak(uint32_t index) {
  const GilRelease release;
  Pool& pool = PoolOrThrow(index);
  return {&pool, index, pool.OpenPeak()};
}

nb::tuple ReadPeak(const PeakBlock& block) {
  Peak peak;
  if (Pool* pool = block.Get()) {
    const GilRelease release;
    peak = pool->ReadPeak(block.block);
  }
  nb::dict by_kernel;
  for (const auto& [kernel, bytes] : peak.by_kernel) {
    by_kernel[KernelName(kernel).c_str()] = bytes;
  }
  return nb::make_tuple(peak.bytes, by_kernel);
}

void ClosePeak(const PeakBlock& block) {
  if (Pool* pool = block.Get()) {
    const GilRelease release;
    pool->ClosePeak(block.block);
  }
}

}  // namespace

void BindWatch(nb::module_& m) {
  m.def("pools", &Pools, nb::sig("def pools() -> list[tuple[int, str]]"));
  nb::class_<PeakBlock>(m, "PeakBlock", "An open block of jax_bfc.peak().")
      .def("read", &ReadPeak,
           nb::sig("def read(self) -> tuple[int, dict[str, int]]"),
           "The peak so far in bytes, and by kernel.")
      .def("close", &ClosePeak, "Ends it: it reads 0 from now on.");
  m.def("open_peak", &OpenPeak, "index"_a);
}

}  // namespace jax_bfc
