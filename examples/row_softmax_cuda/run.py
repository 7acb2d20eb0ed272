"""Loads the kernel that CMake built, and runs it: python run.py [build folder]."""

import ctypes
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

import jax_bfc

build = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "build")
library = ctypes.CDLL(str(build / "librow_softmax.so"))
jax_bfc.register_ffi_target(
    "row_softmax", jax.ffi.pycapsule(library.kRowSoftmax), platform="CUDA"
)


@jax.jit
def row_softmax(x: jax.Array) -> jax.Array:
    result = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.ffi.ffi_call("row_softmax", result, vmap_method="broadcast_all")(x)


x = jax.random.normal(jax.random.key(0), (512, 10_000))
error = jnp.abs(row_softmax(x) - jax.nn.softmax(x)).max()
print(f"largest difference from jax.nn.softmax: {error:.1e}")
print(jax_bfc.kernel_stats()["row_softmax"])
assert error < 1e-6
