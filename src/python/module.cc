// The Python bindings: types in, types out, no logic.
#include <dlfcn.h>
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "core/plan.h"
#include "core/simulate.h"
#include "ffi/c_table.h"
#include "ffi/targets.h"
#include "pool/registry.h"
#include "python/annotate.h"
#include "python/bench.h"
#include "python/gil.h"
#include "python/pools.h"
#include "python/recording.h"
#include "python/scratch.h"
#include "python/watch.h"
#include "source/host_memory.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace jax_bfc {
namespace {

// Of a pool, see registry.h; nothing for all of them.
using Index = std::optional<uint32_t>;

// Python loads extension modules where dlsym(RTLD_DEFAULT, ...) does not look;
// kernel libraries look for jax_bfc_get_api there.
void MakeVisibleToKernels() {
  Dl_info info;
  if (dladdr(reinterpret_cast<void*>(&jax_bfc_get_api), &info) == 0 ||
      dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_GLOBAL) == nullptr) {
    throw std::runtime_error(
        "jax_bfc: the library could not be made visible to kernels");
  }
}

nb::dict Stats(uint32_t index) {
  PoolStats stats;
  {
    const GilRelease release;
    stats = PoolOrThrow(index).Stats();
  }
  nb::dict d;
  d["num_allocs"] = stats.allocations;
  d["bytes_in_use"] = stats.bytes_in_use;
  d["peak_bytes_in_use"] = stats.peak_bytes_in_use;
  d["largest_alloc_size"] = stats.largest_bytes;
  d["bytes_limit"] = stats.limit_bytes;
  d["bytes_reserved"] = 0;
  d["peak_bytes_reserved"] = 0;
  d["largest_free_block_bytes"] = stats.largest_free_bytes;
  d["pool_bytes"] = stats.arena.mapped_bytes;
  d["peak_pool_bytes"] = stats.arena.peak_mapped_bytes;
  d["pinned_bytes"] = stats.pinned_bytes;
  d["pinned_for_life_bytes"] = stats.pinned_for_life_bytes;
  d["requested_bytes"] = stats.requested_bytes;
  d["cached_bytes"] = stats.cached_bytes;
  d["free_bytes"] = stats.arena.free_bytes;
  d["address_bytes"] = stats.arena.reserved_bytes;
  d["total_allocated_bytes"] = stats.total_bytes;
  d["num_live"] = stats.live;
  d["num_cache_hits"] = stats.cache_hits;
  d["num_failures"] = stats.failures;
  d["num_growths"] = stats.arena.growths;
  d["num_trims"] = stats.arena.trims;
  return d;
}

nb::dict Kernels(uint32_t index) {
  std::vector<KernelStats> kernels;
  {
    const GilRelease release;
    kernels = PoolOrThrow(index).Kernels();
  }
  nb::dict result;
  for (const KernelStats& k : kernels) {
    nb::dict d;
    d["calls"] = k.calls;
    d["num_allocs"] = k.allocations;
    d["bytes_in_use"] = k.bytes_in_use;
    d["peak_bytes_in_use"] = k.peak_bytes_in_use;
    d["total_allocated_bytes"] = k.total_bytes;
    d["largest_alloc_size"] = k.largest_bytes;
    d["pinned_bytes"] = k.pinned_bytes;
    d["num_failures"] = k.failures;
    d["call_sites"] = k.call_sites;
    result[k.name.c_str()] = d;
  }
  return result;
}

// None, or why nothing was changed.
std::optional<std::string> SetConfig(Index index,
                                     std::optional<double> memory_fraction,
                                     size_t limit_bytes, size_t initial_bytes,
                                     double growth_factor,
                                     size_t max_growth_bytes, bool preallocate,
                                     std::optional<bool> huge_pages,
                                     const std::string& source) {
  const GilRelease release;
  DeviceConfig config;
  config.memory_fraction = memory_fraction;
  config.pool.limit_bytes = limit_bytes;
  config.pool.growth = {initial_bytes, growth_factor, max_growth_bytes};
  config.pool.preallocate = preallocate;
  config.pool.huge_pages = !huge_pages   ? HugePages::kAuto
                           : *huge_pages ? HugePages::kOn
                                         : HugePages::kOff;
  config.pool.cuda_memory = source == "cuda_vmm" ? CudaMemoryKind::kVirtual
                            : source == "cuda"   ? CudaMemoryKind::kPlain
                                                 : CudaMemoryKind::kAuto;
  return Configure(index, config);
}

// Of the device's configuration, whatever its pool got.
size_t LimitBytes(uint32_t index) {
  const GilRelease release;
  std::string why;
  const std::optional<PoolConfig> config = ConfigOfDevice(index, &why);
  if (!config) throw std::runtime_error("jax_bfc: " + why);
  return IsCudaPool(index) ? config->limit_bytes
                           : std::min(config->limit_bytes, HostBudgetBytes());
}

// (free, total, mapped by our pool) of a CUDA device, in bytes.
std::tuple<size_t, size_t, size_t> CudaMemoryUse(uint32_t ordinal) {
  const GilRelease release;
  std::string why;
  const CudaDevice* device = FindCudaDevice(ordinal, &why);
  if (device == nullptr) throw std::runtime_error("jax_bfc: " + why);
  Pool* pool = FindPool(CudaPoolIndex(ordinal));
  return {device->FreeBytes(), device->total_bytes(),
          pool == nullptr ? 0 : pool->Stats().arena.mapped_bytes};
}

// Why CUDA cannot be used here; None where it can.
std::optional<std::string> WhyNoCuda() {
  const GilRelease release;
  std::string why;
  if (FindCudaDriver(&why) != nullptr) return std::nullopt;
  return why;
}

// The newest CUDA that the driver has, such as "13.0"; None without a driver.
std::optional<std::string> CudaDriverVersion() {
  const GilRelease release;
  std::string why;
  const CudaDriver* driver = FindCudaDriver(&why);
  int version = 0;
  if (driver == nullptr ||
      driver->DriverGetVersion(&version) != cuda::kSuccess) {
    return std::nullopt;
  }
  return std::to_string(version / 1000) + "." +
         std::to_string(version % 1000 / 10);
}

// Of the pools that exist.
template <typename Visit>
void ForEachPool(Index index, Visit&& visit) {
  const GilRelease release;
  if (index) {
    if (Pool* pool = FindPool(*index)) visit(*pool);
    return;
  }
  for (Pool* pool : AllPools()) visit(*pool);
}

size_t Trim(Index index) {
  size_t bytes = 0;
  ForEachPool(index, [&](Pool& pool) { bytes += pool.Trim(); });
  return bytes;
}

void ResetPeaks(Index index) {
  ForEachPool(index, [](Pool& pool) { pool.ResetPeaks(); });
}

std::optional<std::string> ResetPools(Index index) {
  const GilRelease release;
  return Reset(index);
}

std::optional<std::string> LastOomReport(uint32_t index) {
  const GilRelease release;
  std::string report = PoolOrThrow(index).LastOomReport();
  if (report.empty()) return std::nullopt;
  return report;
}

// The capsules (instantiate, execute) for a target, or None when the table of
// targets is full.
std::optional<std::tuple<nb::capsule, nb::capsule>> RegisterTarget(
    const std::string& name, const nb::capsule& execute) {
  const std::optional<Target> target =
      MakeTarget(name, reinterpret_cast<XLA_FFI_Handler*>(execute.data()));
  if (!target) return std::nullopt;
  const auto capsule = [](XLA_FFI_Handler* handler) {
    return nb::capsule(reinterpret_cast<void*>(handler));
  };
  return std::make_tuple(capsule(target->instantiate),
                         capsule(target->execute));
}

template <typename T>
using Column = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::vector<TraceEvent> Events(const Column<uint8_t>& is_allocate,
                               const Column<uint32_t>& ids,
                               const Column<uint64_t>& bytes) {
  std::vector<TraceEvent> events(is_allocate.size());
  for (size_t i = 0; i < events.size(); ++i) {
    events[i] = {is_allocate.data()[i] != 0, ids.data()[i], bytes.data()[i]};
  }
  return events;
}

void CheckColumns(const Column<uint8_t>& is_allocate,
                  const Column<uint32_t>& ids, const Column<uint64_t>& bytes) {
  if (ids.size() != is_allocate.size() || bytes.size() != is_allocate.size()) {
    throw nb::value_error("replay: the columns differ in length");
  }
}

nb::dict ReplayTrace(const Column<uint8_t>& is_allocate,
                     const Column<uint32_t>& ids, const Column<uint64_t>& bytes,
                     const std::string& policy) {
  CheckColumns(is_allocate, ids, bytes);
  ReplayResult result;
  {
    const GilRelease release;
    result = Replay(Events(is_allocate, ids, bytes), policy);
  }
  nb::dict d;
  d["events"] = result.events;
  d["peak_live_bytes"] = result.peak_live_bytes;
  d["high_water_bytes"] = result.high_water_bytes;
  d["premapped_high_water_bytes"] = result.premapped_high_water_bytes;
  d["ratio"] = result.ratio;
  d["mapped_bytes"] = result.mapped_bytes;
  d["internal_fragmentation_bytes"] = result.internal_fragmentation_bytes;
  d["external_fragmentation"] = result.external_fragmentation;
  d["ns_per_event"] = result.ns_per_event;
  return d;
}

nb::dict Plan(const Column<uint8_t>& is_allocate, const Column<uint32_t>& ids,
              const Column<uint64_t>& bytes) {
  CheckColumns(is_allocate, ids, bytes);
  TracePlan plan;
  {
    const GilRelease release;
    plan = PlanTrace(Events(is_allocate, ids, bytes));
  }
  const std::vector<uint64_t>& offsets = plan.packing.offsets;
  nb::dict d;
  d["allocations"] = plan.allocations;
  d["peak_live_bytes"] = plan.peak_live_bytes;
  d["high_water_bytes"] = plan.high_water_bytes;
  d["limit_bytes"] = plan.limit_bytes;
  d["planned_bytes"] = plan.packing.high_water_bytes;
  d["passes"] = plan.packing.passes;
  // Of uint64, by allocation.
  d["offsets"] = nb::bytes(offsets.data(), offsets.size() * sizeof(uint64_t));
  return d;
}

nb::tuple Policies() {
  nb::list names;
  for (const std::string_view name : PolicyNames()) {
    names.append(nb::str(name.data(), name.size()));
  }
  return nb::tuple(names);
}

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "The native part of jax_bfc.";
  MakeVisibleToKernels();
  m.attr("MAX_ALIGNMENT") = kMaxAlignment;
  m.attr("MAX_REQUEST") = kMaxRequest;
  // Pools by index: those of CPU devices, then those of CUDA devices.
  m.attr("MAX_HOST_POOLS") = kMaxHostPools;
  m.attr("MAX_POOLS") = kMaxPools;
  m.def("host_total_bytes", [] { return HostTotalBytes(); });
  m.def("host_available_bytes", &HostAvailableBytes);
  m.def("huge_pages_allowed", &HugePagesAllowed);
  m.def("limit_bytes", &LimitBytes, "index"_a);
  m.def("why_no_cuda", &WhyNoCuda);
  m.def("cuda_driver_version", &CudaDriverVersion);
  m.def("cuda_memory", &CudaMemoryUse, "ordinal"_a);
  m.def("configure", &SetConfig, "index"_a.none(), nb::kw_only(),
        "memory_fraction"_a.none(), "limit_bytes"_a, "initial_bytes"_a,
        "growth_factor"_a, "max_growth_bytes"_a, "preallocate"_a,
        "huge_pages"_a.none(), "source"_a);
  m.def("memory_stats", &Stats, "index"_a,
        nb::sig("def memory_stats(index: int) -> dict[str, int]"));
  m.def("kernel_stats", &Kernels, "index"_a,
        nb::sig("def kernel_stats(index: int) -> dict[str, dict[str, int]]"));
  m.def("trim", &Trim, "index"_a.none());
  m.def("reset", &ResetPools, "index"_a.none());
  m.def("reset_peaks", &ResetPeaks, "index"_a.none());
  m.def("last_oom_report", &LastOomReport, "index"_a);
  m.def("register_target", &RegisterTarget, "name"_a, "execute"_a);
  m.def("policies", &Policies, nb::sig("def policies() -> tuple[str, ...]"));
  m.def("replay", &ReplayTrace, "is_allocate"_a, "ids"_a, "bytes"_a,
        "policy"_a = "bfc",
        nb::sig("def replay(is_allocate: typing.Any, ids: typing.Any, "
                "bytes: typing.Any, policy: str = 'bfc') "
                "-> dict[str, typing.Any]"));
  m.def("plan", &Plan, "is_allocate"_a, "ids"_a, "bytes"_a,
        nb::sig("def plan(is_allocate: typing.Any, ids: typing.Any, "
                "bytes: typing.Any) -> dict[str, typing.Any]"));
  BindScratch(m);
  BindWatch(m);
  BindRecording(m);
  BindAnnotate(m);
  BindBench(m);
}

}  // namespace jax_bfc
