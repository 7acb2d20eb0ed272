/* The C interface of jax_bfc: a versioned table of functions.
 *
 * The library exports one symbol, jax_bfc_get_api. A caller finds it in the
 * process with dlsym(RTLD_DEFAULT, JAX_BFC_GET_API_SYMBOL) after Python has
 * imported jax_bfc, and needs to link nothing. C++ callers use scratch.h, which
 * does all of this.
 *
 * Compatibility: the table starts with its size and version. Within one major
 * version it only grows at the end, so a newer library serves an older header;
 * a newer header gets a null table from an older library. The same holds for
 * every struct here that starts with struct_size.
 *
 * Threads: every function may be called from any thread at any time, also after
 * the interpreter has ended. Nothing throws.
 */
#ifndef JAX_BFC_C_API_H_
#define JAX_BFC_C_API_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define JAX_BFC_API_MAJOR 1
#define JAX_BFC_API_MINOR 1
#define JAX_BFC_GET_API_SYMBOL "jax_bfc_get_api"

/* The least alignment of every allocation, and the largest that can be asked
 * for, in bytes. */
#define JAX_BFC_MIN_ALIGNMENT 256
#define JAX_BFC_MAX_ALIGNMENT (2u << 20)

/* The values are those of absl::StatusCode and of XLA_FFI_Error_Code. */
typedef enum jax_bfc_status {
  JAX_BFC_OK = 0,
  JAX_BFC_INVALID_ARGUMENT = 3,
  JAX_BFC_NOT_FOUND = 5,
  JAX_BFC_RESOURCE_EXHAUSTED = 8,
  JAX_BFC_FAILED_PRECONDITION = 9,
  JAX_BFC_UNIMPLEMENTED = 12,
  JAX_BFC_INTERNAL = 13
} jax_bfc_status;

/* Whose memory a caller wants, and in whose name. Filled in by begin_call or
 * open; plain data, may be copied and moved to another thread. */
typedef struct jax_bfc_context {
  uint32_t pool;   /* index of the pool of one device */
  uint32_t kernel; /* who is charged, see memory_stats and kernel_stats */
  uint32_t calls;  /* internal: 1 until the first allocation was counted */
  uint32_t stream; /* internal: the order of execution; 0 for none */
} jax_bfc_context;

/* One allocation: half-open range [ptr, ptr + bytes). The id names it when it
 * is freed; it is never 0 and is not used again for a long time, so freeing
 * twice is found out. */
typedef struct jax_bfc_allocation {
  void* ptr;
  size_t bytes; /* of the chunk: at least what was asked for */
  uint64_t id;
} jax_bfc_allocation;

/* What an XLA FFI handler was called with, taken from its XLA_FFI_CallFrame. */
typedef struct jax_bfc_call_args {
  size_t struct_size;
  const void* xla_api; /* const XLA_FFI_Api* */
  void* xla_context;   /* XLA_FFI_ExecutionContext* or XLA_FFI_InvokeContext* */
  const void* xla_frame; /* const XLA_FFI_CallFrame* */
  int32_t xla_stage;     /* XLA_FFI_ExecutionStage */
} jax_bfc_call_args;

typedef enum jax_bfc_device_kind {
  JAX_BFC_HOST = 0,
  JAX_BFC_CUDA = 1
} jax_bfc_device_kind;

typedef struct jax_bfc_api {
  size_t struct_size;
  uint32_t major_version;
  uint32_t minor_version;
  const char* library_version; /* of the Python package, such as "0.1.0" */

  /* The text of the last failure on this thread; valid until the next failing
   * call on it. Never null. */
  const char* (*last_error)(void);

  /* For a handler, once a call: finds the device and the kernel. Refuses every
   * stage but execute (JAX_BFC_FAILED_PRECONDITION). Keeps nothing of XLA's. */
  jax_bfc_status (*begin_call)(const jax_bfc_call_args* args,
                               jax_bfc_context* context);

  /* For code outside XLA: the pool of device `ordinal`, charged to
   * `kernel_name` (bytes [name, name + length), copied). On a CUDA device, what
   * is freed is used again only after the device has done all that was
   * submitted to it; see open_stream. */
  jax_bfc_status (*open)(jax_bfc_device_kind kind, int32_t ordinal,
                         const char* kernel_name, size_t length,
                         jax_bfc_context* context);

  /* Charges what follows to the row "<kernel>:<label>". Costs a look-up under a
   * lock. */
  jax_bfc_status (*set_label)(jax_bfc_context* context, const char* label,
                              size_t length);

  /* `bytes` bytes (0 is a good size) at a multiple of `alignment`, a power of
   * two up to JAX_BFC_MAX_ALIGNMENT. JAX_BFC_RESOURCE_EXHAUSTED when it does
   * not fit: last_error() then has the report, and the pool goes on. */
  jax_bfc_status (*allocate)(jax_bfc_context* context, size_t bytes,
                             size_t alignment, jax_bfc_allocation* allocation);

  /* Frees an allocation. JAX_BFC_INVALID_ARGUMENT where (ptr, id) is not one
   * that is in use: a foreign pointer, or freed before. Nothing changes then.
   */
  jax_bfc_status (*free)(void* ptr, uint64_t id);

  /* A call site of a handler that keeps state of its own: create it in the
   * instantiate stage, destroy it with the state, bind it in each call. */
  jax_bfc_status (*call_site_create)(const char* kernel_name, size_t length,
                                     uint64_t* call_site);
  void (*call_site_destroy)(uint64_t call_site);
  jax_bfc_status (*call_site_bind)(uint64_t call_site,
                                   jax_bfc_context* context);

  /* From version 1.1. As open, for work in the order of a CUDA stream (a
   * CUstream or cudaStream_t of that device, null for its default one): what is
   * freed may be used at once by what comes later on that stream. */
  jax_bfc_status (*open_stream)(jax_bfc_device_kind kind, int32_t ordinal,
                                void* stream, const char* kernel_name,
                                size_t length, jax_bfc_context* context);
} jax_bfc_api;

/* The table for a caller built against version major.minor, or null where this
 * library cannot serve it (another major version, or an older minor one). */
typedef const jax_bfc_api* jax_bfc_get_api_function(uint32_t major,
                                                    uint32_t minor);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* JAX_BFC_C_API_H_ */
