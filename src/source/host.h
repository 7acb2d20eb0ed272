// HostSource: pageable host memory by mmap.
//
// Addresses are reserved without memory behind them (PROT_NONE), committed by
// steps (mprotect), and given back to the system by mapping PROT_NONE over
// them. Regions start at multiples of 2 MiB.
#ifndef JAX_BFC_SOURCE_HOST_H_
#define JAX_BFC_SOURCE_HOST_H_

#include <atomic>

#include "core/memory_source.h"
#include "source/host_memory.h"

namespace jax_bfc {

// Huge pages are asked for with madvise, for steps of 2 MiB and more. kAuto and
// kOn differ only where the kernel has none: kOn then refuses to be configured.
enum class HugePages { kAuto, kOn, kOff };

// Whether the kernel gives transparent huge pages to those who ask.
bool HugePagesAllowed();

class HostSource : public MemorySource {
 public:
  struct Options {
    HugePages huge_pages = HugePages::kAuto;
    bool prefault = false;  // touch every page when it is mapped
  };
  HostSource() = default;
  explicit HostSource(const Options& options)
      : huge_pages_(options.huge_pages), prefault_(options.prefault) {}

  const char* name() const override { return "host"; }
  size_t granularity() const override;
  bool has_virtual_memory() const override { return true; }
  size_t DeviceFreeBytes() const override { return HostAvailableBytes(); }
  uintptr_t Reserve(size_t bytes) override;
  void Release(uintptr_t base, size_t bytes) override;
  bool Map(uintptr_t address, size_t bytes) override;
  bool Unmap(uintptr_t address, size_t bytes) override;
  size_t LargestReservation() const override;
  void TakeOptions(const MemorySource& other) override {
    const auto& host = static_cast<const HostSource&>(other);
    huge_pages_ = host.huge_pages_.load();
    prefault_ = host.prefault_.load();
  }

 private:
  std::atomic<HugePages> huge_pages_{HugePages::kAuto};
  std::atomic<bool> prefault_{false};
};

}  // namespace jax_bfc

#endif  // JAX_BFC_SOURCE_HOST_H_
