// The functions behind the C interface, see include/jax_bfc/c_api.h.
#ifndef JAX_BFC_FFI_C_TABLE_H_
#define JAX_BFC_FFI_C_TABLE_H_

#include "jax_bfc/c_api.h"

extern "C" __attribute__((visibility("default"))) const jax_bfc_api*
jax_bfc_get_api(uint32_t major, uint32_t minor);

#endif  // JAX_BFC_FFI_C_TABLE_H_
