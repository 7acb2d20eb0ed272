// What is said when a request does not fit.
#ifndef JAX_BFC_POOL_OOM_REPORT_H_
#define JAX_BFC_POOL_OOM_REPORT_H_

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace jax_bfc {

struct OomReport {
  std::string kernel;
  std::string device;
  size_t requested_bytes = 0;
  size_t chunk_bytes = 0;  // that the request takes
  size_t alignment = 0;
  size_t limit_bytes = 0;
  size_t mapped_bytes = 0;
  size_t bytes_in_use = 0;
  size_t largest_free_bytes = 0;
  size_t device_available_bytes = 0;  // what the device itself has left
  // Whether the device could not be waited for, so that nothing was trimmed.
  bool could_not_wait = false;
  // The kernels that hold most, most first, at most five.
  std::vector<std::pair<std::string, size_t>> holders;

  std::string Text() const;
};

// 1234567 as "1,234,567".
std::string WithCommas(size_t n);

}  // namespace jax_bfc

#endif  // JAX_BFC_POOL_OOM_REPORT_H_
