// How much memory this machine lets the process have.
#ifndef JAX_BFC_SOURCE_HOST_MEMORY_H_
#define JAX_BFC_SOURCE_HOST_MEMORY_H_

#include <cstddef>
#include <string>

namespace jax_bfc {

// The smaller of physical memory and the limits of the process's control groups
// (v1 and v2, the group's own and every parent's), in bytes.
// `root` stands before every file name, for tests.
size_t HostTotalBytes(const std::string& root = "");

// What the kernel says is available without swapping, in bytes.
size_t HostAvailableBytes();

// Addresses that this process has in use.
size_t HostAddressBytes();

}  // namespace jax_bfc

#endif  // JAX_BFC_SOURCE_HOST_MEMORY_H_
