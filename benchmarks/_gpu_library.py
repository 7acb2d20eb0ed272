"""The library of gpu/, as Python calls it: see gpu/pairs.cc and gpu/outside.cc."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import jax_bfc

# Not annotated in every version of JAX.
_ffi: Any = jax.ffi
_Shape: Any = jax.ShapeDtypeStruct

_Figures = ctypes.POINTER(ctypes.c_double)


class Library:
    """Times allocators inside a handler, on threads, and the driver by itself."""

    def __init__(self, path: Path, *, platform: str = "CUDA") -> None:
        self._platform = platform
        self._loaded = ctypes.CDLL(str(path))
        self._loaded.gpu_pairs_ask.argtypes = [
            ctypes.c_char_p,
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_int64,
            _Figures,
        ]
        self._loaded.gpu_pairs_ask.restype = None
        self._loaded.gpu_threads.argtypes = [
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_int64,
            _Figures,
        ]
        self._loaded.gpu_threads.restype = ctypes.c_char_p
        self._loaded.gpu_driver_growth.argtypes = [ctypes.c_int64, _Figures]
        self._loaded.gpu_driver_growth.restype = ctypes.c_char_p
        self._programs = {}
        for graph, symbol in ((True, "gpu_pairs_graph"), (False, "gpu_pairs_plain")):
            target = f"jax_bfc_benchmark_{symbol}"
            self.register(target, symbol, ours=True)
            call = _ffi.ffi_call(
                target, _Shape((1,), jnp.float32), has_side_effect=True
            )
            self._programs[graph] = jax.jit(call)

    def register(self, target: str, symbol: str, *, ours: bool) -> None:
        """A handler of the library, through jax_bfc or by JAX alone."""
        capsule = _ffi.pycapsule(getattr(self._loaded, symbol))
        if ours:
            jax_bfc.register_ffi_target(target, capsule, platform=self._platform)
        else:
            jax.ffi.register_ffi_target(target, capsule, platform=self._platform)

    def in_handler(
        self, side: str, workload: str, *, samples: int, pairs: int, graph: bool
    ) -> list[float]:
        """What a handler measured: ns per pair, or what gpu/pairs.cc says.

        `graph`: by the handler that XLA may put into a graph. Here it never does:
        gpu.py turns graphs off, so that every call is a call.
        """
        answer = (ctypes.c_double * samples)()
        self._loaded.gpu_pairs_ask(
            side.encode(), workload.encode(), samples, pairs, answer
        )
        self._programs[graph]().block_until_ready()
        return list(answer)

    def threads(self, workload: str, count: int, pairs: int) -> float:
        """Wall ns per pair and thread, a stream for each thread, by the C table."""
        answer = ctypes.c_double()
        _check(
            self._loaded.gpu_threads(
                workload.encode(), count, pairs, ctypes.byref(answer)
            )
        )
        return answer.value

    def driver_growth(self, nbytes: int) -> float:
        """ns of cuMemCreate, cuMemMap and cuMemSetAccess of so much."""
        answer = ctypes.c_double()
        _check(self._loaded.gpu_driver_growth(nbytes, ctypes.byref(answer)))
        return answer.value


def _check(message: bytes | None) -> None:
    if message is not None:
        raise RuntimeError(message.decode())
