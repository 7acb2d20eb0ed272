// Memory of CUDA devices: by virtual memory, or plain where that is not
// supported.
//
// Every call makes the device's primary context current and puts back what was,
// so any thread may call, and none of them ends a stream capture.
#ifndef JAX_BFC_SOURCE_CUDA_H_
#define JAX_BFC_SOURCE_CUDA_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/locks.h"
#include "core/memory_source.h"
#include "source/cuda_driver.h"

namespace jax_bfc {

// A device and its primary context, which it holds for the process's life.
// Thread-safe.
class CudaDevice {
 public:
  // Null, and why not, where there is no such device or no driver.
  static std::unique_ptr<CudaDevice> Open(int ordinal, std::string* why);

  ~CudaDevice();

  const CudaDriver& driver() const { return driver_; }
  cuda::Context context() const { return context_; }
  cuda::Device device() const { return device_; }
  int ordinal() const { return ordinal_; }
  size_t total_bytes() const { return total_bytes_; }
  bool has_virtual_memory() const { return has_virtual_memory_; }
  size_t granularity() const { return granularity_; }
  // What the card has free now; more than it has where the driver does not say.
  size_t FreeBytes() const;

  // Returns when all work that was submitted to the device before, on whatever
  // stream, is done; false where that cannot be found out.
  //
  // Freeing plain memory is what waits for it: the driver cannot know which
  // kernels use the memory. cuCtxSynchronize and cuCtxRecordEvent would end
  // every stream capture that is going on in the process, whosever it is, and
  // asking a stream is no way either, since a stream that its owner has
  // destroyed may not be named to the driver. The memory for the next wait is
  // taken as soon as the last has been freed, since on a full card it could not
  // be had when it is wanted.
  bool WaitIdle();

 private:
  void TakeToken() JAX_BFC_REQUIRES(idle_mutex_);  // for the next WaitIdle
  CudaDevice(const CudaDriver& driver, int ordinal)
      : driver_(driver), ordinal_(ordinal) {}
  friend class CudaSource;

  const CudaDriver& driver_;
  const int ordinal_;
  cuda::Device device_ = 0;
  cuda::Context context_ = nullptr;
  size_t total_bytes_ = 0;
  bool has_virtual_memory_ = false;
  size_t granularity_ = 0;

  friend class CudaVmmSource;

  Mutex idle_mutex_{LockRank::kDeviceIdle};
  cuda::Address token_ JAX_BFC_GUARDED_BY(idle_mutex_) = 0;  // see WaitIdle

  Mutex mutex_{LockRank::kDeviceMemory};  // guards what follows
  // Plain memory: the address that was aligned, and what the driver gave.
  std::map<uintptr_t, cuda::Address> plain_;
  std::map<uintptr_t, size_t> ranges_;  // of addresses that were reserved
  // What the driver is to take back. Where it refuses, it is offered again
  // before more is asked for. The records are made before what they record, and
  // moved here without taking memory.
  std::map<uintptr_t, cuda::Address> unwanted_;
  std::map<uintptr_t, size_t> unwanted_mappings_;
  std::vector<cuda::MemoryHandle> unwanted_handles_;
  std::map<uintptr_t, size_t> unwanted_ranges_;
};

// What both sources have in common. Keeps nothing but the device, so a source
// may be replaced by one of its kind.
class CudaMemory : public MemorySource {
 public:
  // REQUIRES: `device` outlives the source.
  explicit CudaMemory(CudaDevice* device) : device_(device) {}
  size_t granularity() const override { return device_->granularity(); }
  // Asked anew for each growth: others come and go on the card.
  size_t AvailableBytes() const override { return device_->FreeBytes(); }
  bool runs_ahead() const override { return true; }
  bool WaitIdle() override { return device_->WaitIdle(); }

 protected:
  const CudaDriver& driver() const { return device_->driver(); }
  CudaDevice* const device_;
};

// Addresses by cuMemAddressReserve, memory by cuMemCreate and cuMemMap, one
// handle a step.
class CudaVmmSource : public CudaMemory {
 public:
  using CudaMemory::CudaMemory;
  const char* name() const override { return "cuda_vmm"; }
  bool has_virtual_memory() const override { return true; }
  uintptr_t Reserve(size_t bytes) override;
  void Release(uintptr_t base, size_t bytes) override;
  bool Map(uintptr_t address, size_t bytes) override;
  bool Unmap(uintptr_t address, size_t bytes) override;

 private:
  // Offers what was not taken back yet. REQUIRES: the device's mutex is held.
  void GiveBack();
};

// Regions by cuMemAlloc. Releasing one waits for the device.
class CudaSource : public CudaMemory {
 public:
  using CudaMemory::CudaMemory;
  const char* name() const override { return "cuda"; }
  bool has_virtual_memory() const override { return false; }
  uintptr_t Reserve(size_t bytes) override;
  void Release(uintptr_t base, size_t bytes) override;
  bool Map(uintptr_t, size_t) override { return false; }
  bool Unmap(uintptr_t, size_t) override { return false; }

 private:
  void GiveBack();  // the same
};

}  // namespace jax_bfc

#endif  // JAX_BFC_SOURCE_CUDA_H_
