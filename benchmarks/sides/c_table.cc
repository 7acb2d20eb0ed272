// The C interface, which is what a handler's ScratchAllocator calls.
#include "ffi/c_table.h"

#include <optional>
#include <string>

#include "harness/side.h"
#include "jax_bfc/c_api.h"
#include "pool/registry.h"

namespace jax_bfc::bench {
namespace {

const jax_bfc_api* api;
jax_bfc_context opened;

}  // namespace

Side OpenSide(std::string_view name, size_t arena_bytes) {
  if (name != "c_table") return {};
  DeviceConfig config;
  config.pool.limit_bytes = arena_bytes;
  const std::optional<std::string> refused =
      Configure(/*index=*/std::nullopt, config);
  if (refused) Die(refused->c_str());
  api = jax_bfc_get_api(JAX_BFC_API_MAJOR, JAX_BFC_API_MINOR);
  if (api == nullptr ||
      api->open(JAX_BFC_HOST, 0, "benchmark", 9, &opened) != JAX_BFC_OK) {
    Die("the C interface could not be opened");
  }
  return {
      nullptr,
      [](void*, size_t bytes) {
        jax_bfc_context context = opened;  // a handler has one of its own
        jax_bfc_allocation allocation;
        if (api->allocate(&context, bytes, 1, &allocation) != JAX_BFC_OK) {
          return Block{nullptr, 0};
        }
        return Block{allocation.ptr, allocation.id};
      },
      [](void*, Block block) {
        if (api->free(block.ptr, block.id) != JAX_BFC_OK) Die("a bad free");
      },
  };
}

}  // namespace jax_bfc::bench
