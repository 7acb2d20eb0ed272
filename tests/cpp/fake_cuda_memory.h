// The memory of a FakeCuda: address ranges, handles, mappings, and plain
// allocations, with the driver's rules on each. There is nothing behind the
// addresses.
//
// What breaks a rule is written to the log and refused. A handle's memory is
// in use until it is released and mapped nowhere. An address given back is the
// first to be given out again where it is the lowest that fits.
//
// Not thread-safe: FakeCuda locks. Knows nothing of contexts and streams.
#ifndef JAX_BFC_TESTS_CPP_FAKE_CUDA_MEMORY_H_
#define JAX_BFC_TESTS_CPP_FAKE_CUDA_MEMORY_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "fake_cuda_log.h"
#include "source/cuda_driver.h"

namespace jax_bfc::testing {

class FakeCudaMemory {
 public:
  using Address = cuda::Address;
  using Handle = cuda::MemoryHandle;
  using Result = cuda::Result;

  static constexpr size_t kGranularity = size_t{2} << 20;
  static constexpr size_t kPlainQuantum = 512;
  // Reserved ranges lie in [kReserveBase, kPlainBase), plain memory above.
  static constexpr Address kReserveBase = Address{1} << 40;
  static constexpr Address kPlainBase = Address{1} << 46;
  static constexpr Address kPlainEnd = Address{1} << 47;

  FakeCudaMemory(int devices, size_t total_bytes, size_t plain_alignment,
                 FakeCudaLog& log)
      : total_bytes_(total_bytes),
        plain_alignment_(plain_alignment),
        used_bytes_(devices),
        log_(log) {}

  size_t FreeBytes(int device) const {
    return total_bytes_ - std::min(total_bytes_, used_bytes_[device]);
  }
  size_t reserved_bytes() const { return Sum(ranges_); }
  size_t mapped_bytes() const { return Sum(mappings_); }

  // Counts as used by somebody else; negative to give it back.
  void Occupy(int device, int64_t bytes) { used_bytes_[device] += bytes; }

  Result Reserve(Address* address, size_t bytes, size_t alignment,
                 uint64_t flags) {
    const auto broken = [&](const char* problem) {
      return log_.Broken(kCudaInvalidValue, "MemAddressReserve", 0, bytes,
                         problem);
    };
    if (!IsPositiveMultiple(bytes)) return broken("not of the granularity");
    if (alignment & (alignment - 1)) return broken("a bad alignment");
    if (flags) return broken("flags are not 0");
    const Address found = FirstFit(ranges_, kReserveBase, kPlainBase, bytes,
                                   std::max(alignment, kGranularity));
    if (!found) return cuda::kOutOfMemory;
    ranges_[found] = {.bytes = bytes};
    *address = found;
    return cuda::kSuccess;
  }

  Result AddressFree(Address address, size_t bytes) {
    const auto broken = [&](const char* problem) {
      return log_.Broken(kCudaInvalidValue, "MemAddressFree", address, bytes,
                         problem);
    };
    const auto range = ranges_.find(address);
    if (range == ranges_.end() || range->second.bytes != bytes) {
      return broken("not a range that was reserved");
    }
    if (AnyMapped(address, bytes)) return broken("still mapped");
    ranges_.erase(range);
    return cuda::kSuccess;
  }

  Result Create(Handle* handle, size_t bytes,
                const cuda::AllocationProperties& properties, uint64_t flags) {
    const auto broken = [&](const char* problem) {
      return log_.Broken(kCudaInvalidValue, "MemCreate", 0, bytes, problem);
    };
    if (!IsPositiveMultiple(bytes)) return broken("not of the granularity");
    if (!AreValid(properties)) return broken("bad properties");
    if (flags) return broken("flags are not 0");
    const int device = properties.location.id;
    if (bytes > FreeBytes(device)) return cuda::kOutOfMemory;
    used_bytes_[device] += bytes;
    *handle = next_handle_++;
    handles_[*handle] = {.bytes = bytes, .device = device};
    return cuda::kSuccess;
  }

  Result Release(Handle handle) {
    const auto memory = handles_.find(handle);
    if (memory == handles_.end() || memory->second.released) {
      return log_.Broken(kCudaInvalidValue, "MemRelease", handle, 0,
                         "no handle of a memory, or released before");
    }
    memory->second.released = true;
    ForgetIfUnused(memory);
    return cuda::kSuccess;
  }

  Result Map(Address address, size_t bytes, size_t offset, Handle handle,
             uint64_t flags) {
    const auto broken = [&](const char* problem) {
      return log_.Broken(kCudaInvalidValue, "MemMap", address, bytes, problem);
    };
    if (!IsPositiveMultiple(bytes) || address % kGranularity != 0) {
      return broken("not of the granularity");
    }
    if (!IsReserved(address, bytes)) return broken("not reserved");
    if (AnyMapped(address, bytes)) return broken("mapped already");
    const auto memory = handles_.find(handle);
    if (memory == handles_.end() || memory->second.released) {
      return broken("no handle of a memory, or a released one");
    }
    if (offset != 0 || bytes != memory->second.bytes) {
      return broken("not the whole handle");
    }
    if (flags) return broken("flags are not 0");
    ++memory->second.mappings;
    mappings_[address] = {.bytes = bytes, .handle = handle, .access = {}};
    return cuda::kSuccess;
  }

  Result SetAccess(Address address, size_t bytes,
                   const cuda::AccessDescription* descriptions, size_t count) {
    const auto broken = [&](const char* problem) {
      return log_.Broken(kCudaInvalidValue, "MemSetAccess", address, bytes,
                         problem);
    };
    const std::vector<Mappings::iterator> mappings =
        WholeMappings(address, bytes);
    if (mappings.empty()) return broken("not exactly what was mapped");
    if (count == 0) return broken("no access described");
    for (size_t i = 0; i < count; ++i) {
      const cuda::AccessDescription& description = descriptions[i];
      const int flags = description.flags;
      if (!IsDevice(description.location) ||
          (flags != 0 && flags != 1 && flags != cuda::kAccessReadWrite)) {
        return broken("bad access description");
      }
    }
    for (const auto mapping : mappings) {
      for (size_t i = 0; i < count; ++i) {
        mapping->second.access[descriptions[i].location.id] =
            descriptions[i].flags;
      }
    }
    return cuda::kSuccess;
  }

  Result Unmap(Address address, size_t bytes) {
    const std::vector<Mappings::iterator> mappings =
        WholeMappings(address, bytes);
    if (mappings.empty()) {
      return log_.Broken(kCudaInvalidValue, "MemUnmap", address, bytes,
                         "not exactly what was mapped");
    }
    for (const auto mapping : mappings) {
      const auto memory = handles_.find(mapping->second.handle);
      --memory->second.mappings;
      mappings_.erase(mapping);
      ForgetIfUnused(memory);
    }
    return cuda::kSuccess;
  }

  Result Alloc(Address* address, size_t bytes, int device) {
    if (bytes == 0) {
      return log_.Broken(kCudaInvalidValue, "MemAlloc", 0, bytes, "no bytes");
    }
    if (bytes > FreeBytes(device)) return cuda::kOutOfMemory;
    const size_t size =
        (bytes + kPlainQuantum - 1) / kPlainQuantum * kPlainQuantum;
    // From an address on that has no greater alignment than that.
    const Address found = FirstFit(plain_, kPlainBase + plain_alignment_,
                                   kPlainEnd, size, plain_alignment_);
    if (size > FreeBytes(device) || !found) return cuda::kOutOfMemory;
    used_bytes_[device] += size;
    plain_[found] = {.bytes = size, .device = device};
    *address = found;
    return cuda::kSuccess;
  }

  // `device`: whose memory it was.
  Result Free(Address address, int* device) {
    const auto plain = plain_.find(address);
    if (plain == plain_.end()) {
      return log_.Broken(kCudaInvalidValue, "MemFree", address, 0,
                         "not what MemAlloc gave");
    }
    *device = plain->second.device;
    used_bytes_[*device] -= plain->second.bytes;
    plain_.erase(plain);
    return cuda::kSuccess;
  }

  bool AreValid(const cuda::AllocationProperties& properties) const {
    return properties.type == cuda::kAllocationTypePinned &&
           IsDevice(properties.location);
  }

  // Whether work of the device may write every byte.
  bool IsWritable(Address address, size_t bytes, int device) const {
    const Address end = address + bytes;
    if (end < address) return false;
    const auto plain = Containing(plain_, address);
    if (plain != plain_.end()) {
      return end <= plain->first + plain->second.bytes &&
             plain->second.device == device;
    }
    while (address < end) {
      const auto mapping = Containing(mappings_, address);
      if (mapping == mappings_.end()) return false;
      const auto access = mapping->second.access.find(device);
      if (access == mapping->second.access.end() ||
          access->second != cuda::kAccessReadWrite) {
        return false;
      }
      address = mapping->first + mapping->second.bytes;
    }
    return true;
  }

  // What an order to give it back that the fake itself made fail leaves
  // behind is no leak: nobody could have done better.
  void ExcuseHandle(Handle handle) { Excuse(handles_, handle); }
  void ExcuseRange(Address address, size_t) { Excuse(ranges_, address); }
  void ExcusePlain(Address address) { Excuse(plain_, address); }
  void ExcuseMappings(Address address, size_t bytes) {
    for (const auto mapping : WholeMappings(address, bytes)) {
      mapping->second.excused = true;
      Excuse(handles_, mapping->second.handle);
      Containing(ranges_, address)->second.excused = true;
    }
  }

  void AppendLeaks(std::vector<std::string>& leaks) const {
    const auto append = [&](const char* what, uint64_t name, size_t bytes) {
      std::ostringstream text;
      text << "leak: " << what << " 0x" << std::hex << name << std::dec << ", "
           << bytes << " bytes";
      leaks.push_back(text.str());
    };
    for (const auto& [handle, memory] : handles_) {
      if (memory.released || memory.excused) continue;
      append("handle not released,", handle, memory.bytes);
    }
    for (const auto& [address, mapping] : mappings_) {
      if (!mapping.excused) append("mapping at", address, mapping.bytes);
    }
    for (const auto& [address, range] : ranges_) {
      if (!range.excused) append("range reserved at", address, range.bytes);
    }
    // A device keeps one smallest block for life: what it next waits with.
    int kept = 2;  // devices
    for (const auto& [address, plain] : plain_) {
      if (plain.bytes == kPlainQuantum && kept-- > 0) continue;
      if (!plain.excused) append("plain memory at", address, plain.bytes);
    }
  }

 private:
  struct Range {
    size_t bytes = 0;
    bool excused = false;
  };
  struct Memory {
    size_t bytes = 0;
    int device = 0;
    int mappings = 0;
    bool released = false;
    bool excused = false;
  };
  struct Mapping {
    size_t bytes = 0;
    Handle handle = 0;
    std::map<int, int> access;  // by device
    bool excused = false;
  };
  struct Plain {
    size_t bytes = 0;
    int device = 0;
    bool excused = false;
  };
  using Handles = std::map<Handle, Memory>;
  using Mappings = std::map<Address, Mapping>;

  static bool IsPositiveMultiple(size_t bytes) {
    return bytes > 0 && bytes % kGranularity == 0;
  }

  bool IsDevice(const cuda::MemoryLocation& location) const {
    return location.type == cuda::kLocationTypeDevice && location.id >= 0 &&
           location.id < static_cast<int>(used_bytes_.size());
  }

  // The lowest address in [base, end) that fits, or 0.
  template <typename Map>
  static Address FirstFit(const Map& taken, Address base, Address end,
                          size_t bytes, size_t alignment) {
    const auto round_up = [&](Address address) {
      return (address + alignment - 1) & ~Address{alignment - 1};
    };
    if (alignment > end || bytes > end) return 0;
    Address address = round_up(base);
    for (const auto& [start, range] : taken) {
      if (address + bytes <= start) break;
      address = std::max(address, round_up(start + range.bytes));
    }
    return address + bytes <= end ? address : 0;
  }

  // What of the map the address lies in, or its end.
  template <typename Map>
  static auto Containing(Map& map, Address address) -> decltype(map.end()) {
    auto entry = map.upper_bound(address);
    if (entry == map.begin()) return map.end();
    --entry;
    return address < entry->first + entry->second.bytes ? entry : map.end();
  }

  template <typename Map>
  static void Excuse(Map& map, uint64_t name) {
    const auto entry = map.find(name);
    if (entry != map.end()) entry->second.excused = true;
  }

  template <typename Map>
  static size_t Sum(const Map& map) {
    size_t sum = 0;
    for (const auto& [address, range] : map) sum += range.bytes;
    return sum;
  }

  bool IsReserved(Address address, size_t bytes) const {
    const auto range = Containing(ranges_, address);
    return range != ranges_.end() &&
           bytes <= range->second.bytes - (address - range->first);
  }

  bool AnyMapped(Address address, size_t bytes) const {
    const auto after = mappings_.lower_bound(address + bytes);
    if (after == mappings_.begin()) return false;
    const auto last = std::prev(after);
    return last->first + last->second.bytes > address;
  }

  // The mappings that tile exactly this part of one range; none where it is
  // not so.
  std::vector<Mappings::iterator> WholeMappings(Address address, size_t bytes) {
    std::vector<Mappings::iterator> found;
    if (!IsReserved(address, bytes)) return found;
    const Address end = address + bytes;
    auto mapping = mappings_.find(address);
    while (address < end && mapping != mappings_.end() &&
           mapping->first == address) {
      found.push_back(mapping);
      address += mapping->second.bytes;
      ++mapping;
    }
    if (address != end) found.clear();
    return found;
  }

  void ForgetIfUnused(Handles::iterator memory) {
    if (!memory->second.released || memory->second.mappings > 0) return;
    used_bytes_[memory->second.device] -= memory->second.bytes;
    handles_.erase(memory);
  }

  const size_t total_bytes_;
  const size_t plain_alignment_;
  std::vector<size_t> used_bytes_;  // by device
  FakeCudaLog& log_;
  Handle next_handle_ = 0x1000;
  Handles handles_;
  std::map<Address, Range> ranges_;
  Mappings mappings_;
  std::map<Address, Plain> plain_;
};

}  // namespace jax_bfc::testing

#endif  // JAX_BFC_TESTS_CPP_FAKE_CUDA_MEMORY_H_
