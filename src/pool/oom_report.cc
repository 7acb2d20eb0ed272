#include "pool/oom_report.h"

#include <algorithm>

namespace jax_bfc {

std::string WithCommas(size_t n) {
  std::string digits = std::to_string(n);
  for (size_t i = digits.size(); i > 3; i -= 3) digits.insert(i - 3, ",");
  return digits;
}

std::string OomReport::Text() const {
  std::string text = "jax_bfc: kernel '" + kernel + "' on " + device +
                     " asked for " + WithCommas(requested_bytes) +
                     " bytes of scratch";
  if (chunk_bytes > limit_bytes && requested_bytes <= limit_bytes) {
    text += " (a chunk of " + WithCommas(chunk_bytes) + ")";
  }
  if (alignment > 256) text += " aligned to " + WithCommas(alignment);
  text += "; " + WithCommas(bytes_in_use) + " of " + WithCommas(limit_bytes) +
          " in use, " + WithCommas(mapped_bytes) +
          " mapped, largest free chunk " + WithCommas(largest_free_bytes) +
          "; the device has " + WithCommas(device_available_bytes) +
          " available. ";
  if (!holders.empty()) {
    text += "Held by ";
    for (size_t i = 0; i < holders.size(); ++i) {
      if (i > 0) text += ", ";
      text += "'" + holders[i].first + "' " + WithCommas(holders[i].second);
    }
    text += ". ";
  }
  // What it takes; a report that was made by hand may not say.
  const size_t needed_bytes = std::max(requested_bytes, chunk_bytes);
  if (needed_bytes > limit_bytes) {
    text +=
        "The request is larger than the limit: raise limit_bytes or "
        "memory_fraction in jax_bfc.configure().";
  } else if (device.starts_with("cuda") &&
             device_available_bytes < needed_bytes &&
             mapped_bytes + needed_bytes <= limit_bytes) {
    text +=
        "The limit would allow it, but the card has no more: JAX takes 75 % of "
        "it when it starts. Start with a lower XLA_CLIENT_MEM_FRACTION, or "
        "with XLA_PYTHON_CLIENT_PREALLOCATE=false.";
  } else if (could_not_wait) {
    text +=
        "The device could not be waited for, so what is free in other streams' "
        "lanes was not given back: a kernel has failed, or the card has not "
        "even 256 bytes left.";
  } else if (bytes_in_use > limit_bytes ||
             limit_bytes - bytes_in_use < needed_bytes) {
    text +=
        "The limit is too small for what is in use together: raise limit_bytes "
        "or memory_fraction in jax_bfc.configure(), or run fewer kernels at "
        "once.";
  } else {
    text +=
        "The limit would allow it, but the memory is in pieces, shared with "
        "another device's pool, or refused by the system: see "
        "jax_bfc.memory_stats().";
  }
  return text;
}

}  // namespace jax_bfc
