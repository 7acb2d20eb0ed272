"""Loads the built kernels, registers them with XLA, and calls them."""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

import jax_bfc

Source = Literal["bfc", "malloc", "output"]
SOURCES: tuple[Source, ...] = get_args(Source)

# The operations, and how many sizes their need for scratch depends on.
OPERATIONS = {
    "attention_forward": 4,
    "attention_backward": 4,
    "cross_entropy_forward": 3,
    "cross_entropy_backward": 3,
    "int8_matmul": 3,
    "sample": 2,
}


class Kernels:
    """The kernel library, with every operation registered for every source.

    An operation is the FFI target "transformer.<operation>.<source>", where the
    source says where its scratch comes from: jax_bfc's arena, malloc in the
    handler, or an extra output of the custom call.
    """

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        # Extra outputs are sized when a program is traced, when it is not known
        # how many threads will run it: no more than this, for every source.
        self.max_threads = os.cpu_count() or 1
        # The largest workspace that one call was given as an output, in bytes.
        self.largest_output_workspace = 0
        for operation, sizes in OPERATIONS.items():
            workspace = self._library[f"transformer_{operation}_workspace"]
            workspace.argtypes = [ctypes.c_int64] * (sizes + 1)
            workspace.restype = ctypes.c_uint64
            for source in SOURCES:
                handler = self._library[f"transformer_{operation}_{source}"]
                capsule = jax.ffi.pycapsule(handler)
                target = f"transformer.{operation}.{source}"
                if source == "bfc":
                    jax_bfc.register_ffi_target(target, capsule, platform="cpu")
                else:
                    jax.ffi.register_ffi_target(target, capsule, platform="cpu")
        self._library.transformer_isa.restype = ctypes.c_char_p
        self._library.transformer_malloc_peak_bytes.restype = ctypes.c_uint64

    @property
    def isa(self) -> str:
        """The instruction set in use: "avx512", "avx2" or "baseline"."""
        name: bytes = self._library.transformer_isa()
        return name.decode()

    def malloc_peak_bytes(self) -> int:
        """Most bytes that handlers held from malloc at once since the reset."""
        return int(self._library.transformer_malloc_peak_bytes())

    def reset_malloc_peak(self) -> None:
        self._library.transformer_malloc_reset_peak()

    def workspace_bytes(self, operation: str, sizes: Sequence[int]) -> int:
        """Scratch of one call: what an extra output has to provide."""
        function = self._library[f"transformer_{operation}_workspace"]
        return int(function(*sizes, self.max_threads))

    def call(
        self,
        operation: str,
        source: Source,
        operands: Sequence[jax.Array],
        results: Sequence[jax.ShapeDtypeStruct],
        sizes: Sequence[int],
        vmap_method: str,
        **attributes: np.generic,
    ) -> list[jax.Array]:
        """Calls the kernel in a traced program; returns an array for each result.

        `sizes` are those that workspace_bytes() takes for this operation.
        """
        results = list(results)
        if source == "output":
            nbytes = self.workspace_bytes(operation, sizes)
            self.largest_output_workspace = max(self.largest_output_workspace, nbytes)
            results.insert(0, jax.ShapeDtypeStruct((nbytes,), jnp.uint8))
        function = jax.ffi.ffi_call(
            f"transformer.{operation}.{source}", results, vmap_method=vmap_method
        )
        outputs = function(
            *operands, max_threads=np.int64(self.max_threads), **attributes
        )
        return list(outputs)[1:] if source == "output" else list(outputs)
