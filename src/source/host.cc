#include "source/host.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <string>

#include "core/size_class.h"

namespace jax_bfc {
namespace {

constexpr size_t kHugePageBytes = size_t{2} << 20;
// Of one region: a process may have 2,048 CPU devices, and has 2^47 addresses.
constexpr size_t kMostReserved = size_t{1} << 42;

void* Pointer(uintptr_t address) { return reinterpret_cast<void*>(address); }

// Faults every page in, in one call where the kernel can (Linux 5.14); false
// where it has not enough memory.
bool Prefault(uintptr_t address, size_t bytes) {
#ifdef MADV_POPULATE_WRITE
  if (madvise(Pointer(address), bytes, MADV_POPULATE_WRITE) == 0) return true;
  if (errno != EINVAL) return false;  // EINVAL: an older kernel
#endif
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  for (size_t i = 0; i < bytes; i += page) {
    *reinterpret_cast<volatile char*>(address + i) = 0;
  }
  return true;
}

}  // namespace

bool HugePagesAllowed() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string line;
  std::getline(file, line);
  return line.find("[always]") != std::string::npos ||
         line.find("[madvise]") != std::string::npos;
}

size_t HostSource::granularity() const {
  static const size_t page =
      std::max(kQuantum, static_cast<size_t>(sysconf(_SC_PAGESIZE)));
  return page;
}

uintptr_t HostSource::Reserve(size_t bytes) {
  // More than is asked for, so that what is cut off leaves an aligned base.
  const size_t wide = bytes + kMaxAlignment;
  if (wide < bytes) return 0;
  void* mapped = mmap(nullptr, wide, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) return 0;
  const auto begin = reinterpret_cast<uintptr_t>(mapped);
  const uintptr_t base = RoundUp(begin, kMaxAlignment);
  if (base != begin) munmap(mapped, base - begin);
  const uintptr_t end = base + RoundUp(bytes, granularity());
  if (end != begin + wide) munmap(Pointer(end), begin + wide - end);
  return base;
}

size_t HostSource::LargestReservation() const {
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) {
    return kMostReserved;
  }
  // Others want addresses too, and other devices' pools.
  const size_t used = HostAddressBytes();
  const size_t left = limit.rlim_cur > used ? limit.rlim_cur - used : 0;
  return std::min(kMostReserved, RoundDown(left / 4, granularity()));
}

void HostSource::Release(uintptr_t base, size_t bytes) {
  munmap(Pointer(base), bytes);
}

bool HostSource::Map(uintptr_t address, size_t bytes) {
  if (mprotect(Pointer(address), bytes, PROT_READ | PROT_WRITE) != 0) {
    return false;
  }
  if (huge_pages_ != HugePages::kOff && bytes >= kHugePageBytes) {
    // Advice: where the kernel does not follow it, small pages serve as well.
    madvise(Pointer(address), bytes, MADV_HUGEPAGE);
  }
  if (!prefault_ || Prefault(address, bytes)) return true;
  Unmap(address, bytes);
  return false;
}

bool HostSource::Unmap(uintptr_t address, size_t bytes) {
  return mmap(Pointer(address), bytes, PROT_NONE,
              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
              0) != MAP_FAILED;
}

}  // namespace jax_bfc
