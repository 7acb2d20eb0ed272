"""The kernels of a CUDA GPU, with five sources of scratch."""

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np

from bytelm.kernels import KernelLibrary

# Those that the library counts for itself, in the order of its enum Counted.
COUNTED = ("xla", "async", "malloc")


class CudaKernels(KernelLibrary):
    """The kernels of a CUDA GPU; operands are all float32 or all bfloat16."""

    platform = "CUDA"
    operations: ClassVar[Mapping[str, int]] = {
        "attention_forward": 4,
        "attention_backward": 4,
        "decode": 4,
        "cross_entropy_forward": 3,
        "cross_entropy_backward": 3,
        "int8_matmul": 3,
        "sample": 2,
    }
    sources: ClassVar[Mapping[str, str]] = {
        "bfc": "jax_bfc",
        "xla": "XLA's ScratchAllocator",
        "output": "extra XLA output",
        "async": "cudaMallocAsync",
        "malloc": "cudaMalloc",
    }
    baseline = "xla"
    graph_sources = ("bfc_graph", "output_graph")

    def __init__(self, library: Path) -> None:
        super().__init__(library)
        self._library.transformer_peak_bytes.argtypes = [ctypes.c_int]
        self._library.transformer_peak_bytes.restype = ctypes.c_uint64

    @property
    def description(self) -> str:
        return str(jax.devices("cuda")[0].device_kind)

    def _last_size(self, operands: Sequence[jax.Array]) -> int:
        return int(operands[0].dtype.itemsize)

    def peaks(self) -> dict[str, int]:
        counted = {
            source: int(self._library.transformer_peak_bytes(i))
            for i, source in enumerate(COUNTED)
        }
        return {**super().peaks(), **counted}

    def reset_peaks(self) -> None:
        super().reset_peaks()
        self._library.transformer_reset_peaks()

    def call(
        self,
        operation: str,
        source: str,
        operands: Sequence[jax.Array],
        results: Sequence[jax.ShapeDtypeStruct],
        sizes: Sequence[int],
        vmap_method: str,
        **attributes: np.generic,
    ) -> list[jax.Array]:
        # An output that is batched is n times that of one call; sorting the rows
        # of n calls at once can take more.
        if operation == "sample" and source.startswith("output"):
            vmap_method = "sequential"
        return super().call(
            operation, source, operands, results, sizes, vmap_method, **attributes
        )
