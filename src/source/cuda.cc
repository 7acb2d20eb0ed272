#include "source/cuda.h"

#include <algorithm>
#include <limits>
#include <new>
#include <utility>

#include "core/size_class.h"

namespace jax_bfc {
namespace {

// A record for a map by address, whose key is set later; empty where the host
// has no memory for it.
template <typename T>
typename std::map<uintptr_t, T>::node_type MakeNode() {
  try {
    std::map<uintptr_t, T> made;
    made.emplace(0, T{});
    return made.extract(made.begin());
  } catch (const std::bad_alloc&) {
    return {};
  }
}

constexpr size_t kPlainGranularity = size_t{2} << 20;

}  // namespace

std::unique_ptr<CudaDevice> CudaDevice::Open(int ordinal, std::string* why) {
  const CudaDriver* driver = FindCudaDriver(why);
  if (driver == nullptr) return nullptr;
  std::unique_ptr<CudaDevice> device(new CudaDevice(*driver, ordinal));
  const auto good = [&](const char* call, cuda::Result result) {
    if (result == cuda::kSuccess) return true;
    *why = std::string(call) + " of CUDA device " + std::to_string(ordinal) +
           " failed with " + CudaErrorName(*driver, result);
    return false;
  };
  int count = 0;
  if (!good("cuDeviceGetCount", driver->DeviceGetCount(&count))) return nullptr;
  if (ordinal < 0 || ordinal >= count) {
    *why = "there is no CUDA device " + std::to_string(ordinal) +
           "; this process sees " + std::to_string(count);
    return nullptr;
  }
  int virtual_memory = 0;
  if (!good("cuDeviceGet", driver->DeviceGet(&device->device_, ordinal)) ||
      !good("cuDeviceTotalMem",
            driver->DeviceTotalMem(&device->total_bytes_, device->device_)) ||
      !good("cuDeviceGetAttribute",
            driver->DeviceGetAttribute(&virtual_memory,
                                       cuda::kAttributeVirtualMemory,
                                       device->device_))) {
    return nullptr;
  }
  device->has_virtual_memory_ = virtual_memory != 0;
  device->granularity_ = kPlainGranularity;
  if (device->has_virtual_memory_) {
    cuda::AllocationProperties properties;
    properties.location.id = device->device();
    size_t granularity = 0;
    if (!good("cuMemGetAllocationGranularity",
              driver->MemGetAllocationGranularity(&granularity, &properties,
                                                  cuda::kGranularityMinimum))) {
      return nullptr;
    }
    device->granularity_ = std::max(kPlainGranularity, granularity);
  }
  // Last, since it is the one thing that would have to be given back.
  if (!good(
          "cuDevicePrimaryCtxRetain",
          driver->DevicePrimaryCtxRetain(&device->context_, device->device_))) {
    return nullptr;
  }
  const Guard lock(device->idle_mutex_);
  const CudaScope scope(*driver, device->context_);
  if (scope.entered()) device->TakeToken();
  return device;
}

CudaDevice::~CudaDevice() {
  const Guard lock(idle_mutex_);
  if (token_ == 0) return;
  const CudaScope scope(driver_, context_);
  driver_.MemFree(token_);
}

size_t CudaDevice::FreeBytes() const {
  const CudaScope scope(driver_, context_);
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  if (!scope.entered() ||
      driver_.MemGetInfo(&free_bytes, &total_bytes) != cuda::kSuccess) {
    return std::numeric_limits<size_t>::max();
  }
  return free_bytes;
}

bool CudaDevice::WaitIdle() {
  const Guard lock(idle_mutex_);
  const CudaScope scope(driver_, context_);
  if (!scope.entered()) return false;
  TakeToken();
  if (token_ == 0 || driver_.MemFree(token_) != cuda::kSuccess) return false;
  token_ = 0;
  TakeToken();
  return true;
}

void CudaDevice::TakeToken() {
  if (token_ == 0 && driver_.MemAlloc(&token_, kQuantum) != cuda::kSuccess) {
    token_ = 0;
  }
}

// ---------------------------------------------------------------------------
// Virtual memory.

uintptr_t CudaVmmSource::Reserve(size_t bytes) {
  auto record = MakeNode<size_t>();
  const CudaScope scope(driver(), device_->context());
  if (record.empty() || !scope.entered()) return 0;
  const Guard lock(device_->mutex_);
  GiveBack();
  cuda::Address base = 0;
  if (driver().MemAddressReserve(&base, RoundUp(bytes, granularity()),
                                 kMaxAlignment, 0, 0) != cuda::kSuccess) {
    return 0;
  }
  record.key() = base;
  device_->ranges_.insert(std::move(record));
  return base;
}

void CudaVmmSource::Release(uintptr_t base, size_t bytes) {
  const CudaScope scope(driver(), device_->context());
  const Guard lock(device_->mutex_);
  auto record = device_->ranges_.extract(base);
  record.mapped() = bytes;
  device_->unwanted_ranges_.insert(std::move(record));
  if (scope.entered()) GiveBack();
}

bool CudaVmmSource::Map(uintptr_t address, size_t bytes) {
  auto record = MakeNode<size_t>();
  const CudaScope scope(driver(), device_->context());
  if (record.empty() || !scope.entered()) return false;
  const Guard lock(device_->mutex_);
  GiveBack();
  try {
    device_->unwanted_handles_.reserve(device_->unwanted_handles_.size() + 1);
  } catch (const std::bad_alloc&) {
    return false;
  }
  cuda::AllocationProperties properties;
  properties.location.id = device_->device();
  cuda::MemoryHandle handle = 0;
  if (driver().MemCreate(&handle, bytes, &properties, 0) != cuda::kSuccess) {
    return false;
  }
  const bool mapped =
      driver().MemMap(address, bytes, 0, handle, 0) == cuda::kSuccess;
  cuda::AccessDescription access;
  access.location = properties.location;
  const bool accessible =
      mapped &&
      driver().MemSetAccess(address, bytes, &access, 1) == cuda::kSuccess;
  // The mapping keeps the memory from here on.
  const bool released = driver().MemRelease(handle) == cuda::kSuccess;
  if (accessible && released) return true;
  if (mapped) {
    record.key() = address;
    record.mapped() = bytes;
    device_->unwanted_mappings_.insert(std::move(record));
  }
  if (!released) device_->unwanted_handles_.push_back(handle);
  GiveBack();
  return false;
}

void CudaVmmSource::GiveBack() {
  std::erase_if(device_->unwanted_mappings_, [&](const auto& mapping) {
    return driver().MemUnmap(mapping.first, mapping.second) == cuda::kSuccess;
  });
  std::erase_if(device_->unwanted_handles_, [&](cuda::MemoryHandle handle) {
    return driver().MemRelease(handle) == cuda::kSuccess;
  });
  // Not while something is mapped there.
  if (!device_->unwanted_mappings_.empty()) return;
  std::erase_if(device_->unwanted_ranges_, [&](const auto& range) {
    return driver().MemAddressFree(range.first, range.second) == cuda::kSuccess;
  });
}

bool CudaVmmSource::Unmap(uintptr_t address, size_t bytes) {
  const CudaScope scope(driver(), device_->context());
  return scope.entered() && driver().MemUnmap(address, bytes) == cuda::kSuccess;
}

// ---------------------------------------------------------------------------
// Plain memory.

uintptr_t CudaSource::Reserve(size_t bytes) {
  auto record = MakeNode<cuda::Address>();
  auto too_low = MakeNode<cuda::Address>();
  const CudaScope scope(driver(), device_->context());
  if (record.empty() || too_low.empty() || !scope.entered()) return 0;
  const Guard lock(device_->mutex_);
  GiveBack();
  cuda::Address address = 0;
  if (driver().MemAlloc(&address, bytes) != cuda::kSuccess) return 0;
  if (address % kMaxAlignment != 0) {
    // Large blocks start at such a multiple by themselves; where one does not,
    // a wider one has such an address in it.
    too_low.key() = address;
    too_low.mapped() = address;
    device_->unwanted_.insert(std::move(too_low));
    GiveBack();
    if (driver().MemAlloc(&address, bytes + kMaxAlignment) != cuda::kSuccess) {
      return 0;
    }
  }
  const uintptr_t base = RoundUp(address, kMaxAlignment);
  record.key() = base;
  record.mapped() = address;
  device_->plain_.insert(std::move(record));
  return base;
}

void CudaSource::Release(uintptr_t base, size_t) {
  const CudaScope scope(driver(), device_->context());
  const Guard lock(device_->mutex_);
  device_->unwanted_.insert(device_->plain_.extract(base));
  if (scope.entered()) GiveBack();
}

void CudaSource::GiveBack() {
  std::erase_if(device_->unwanted_, [&](const auto& block) {
    return driver().MemFree(block.second) == cuda::kSuccess;
  });
}

}  // namespace jax_bfc
