// A stream's lane as it is kept between two calls: which lane, and which stream
// of those that have had it. The stream loses its lane when another one gets
// it; the reference is then stale, and says so.
#ifndef JAX_BFC_POOL_STREAMS_STREAM_REF_H_
#define JAX_BFC_POOL_STREAMS_STREAM_REF_H_

#include <cstdint>

namespace jax_bfc {

struct StreamRef {
  static constexpr uint32_t kLaneBits = 8;
  static constexpr uint32_t kGenerationMask = (1u << (32 - kLaneBits)) - 1;

  uint32_t lane = 0;        // 0: no stream's, see lane.h
  uint32_t generation = 0;  // of the lane, in 24 bits

  constexpr uint32_t Pack() const { return generation << kLaneBits | lane; }
  static constexpr StreamRef Unpack(uint32_t packed) {
    return {packed & ((1u << kLaneBits) - 1), packed >> kLaneBits};
  }
  bool operator==(const StreamRef&) const = default;
};
static_assert(StreamRef::Unpack(StreamRef{47, 0xFFFFFF}.Pack()) ==
              StreamRef{47, 0xFFFFFF});

}  // namespace jax_bfc

#endif  // JAX_BFC_POOL_STREAMS_STREAM_REF_H_
