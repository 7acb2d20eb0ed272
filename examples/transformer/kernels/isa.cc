#include <cstdlib>
#include <cstring>

#include "tiles.h"

namespace transformer {
namespace {

#define TRANSFORMER_TILES(name) \
  {#name,                       \
   name::PackForward,           \
   name::AttentionForward,      \
   name::PackBackward,          \
   name::AttentionGradient,     \
   name::SumQueryGradient,      \
   name::PackHead,              \
   name::SumHeadGradient,       \
   name::TransposeHead,         \
   name::CrossEntropyLoss,      \
   name::CrossEntropyGradient,  \
   name::QuantiseRows,          \
   name::QuantiseColumns,       \
   name::Int8Multiply}

constexpr Tiles kBaseline = TRANSFORMER_TILES(baseline);
#ifdef TILES_X86
constexpr Tiles kAvx2 = TRANSFORMER_TILES(avx2);
constexpr Tiles kAvx512 = TRANSFORMER_TILES(avx512);
#endif

const Tiles& Choose() {
  const char* wanted = std::getenv("TRANSFORMER_ISA");
  auto allowed = [wanted](const Tiles& tiles) {
    return wanted == nullptr || std::strcmp(wanted, tiles.isa) == 0;
  };
#ifdef TILES_X86
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vnni");
  if (avx512 && allowed(kAvx512)) return kAvx512;
  if (avx2 && allowed(kAvx2)) return kAvx2;
#endif
  static_cast<void>(allowed);
  return kBaseline;
}

}  // namespace

const Tiles& TilesOfThisProcessor() {
  static const Tiles& tiles = Choose();
  return tiles;
}

}  // namespace transformer

extern "C" const char* transformer_isa() {
  return transformer::TilesOfThisProcessor().isa;
}
