"""Loads the built kernels, registers them with XLA, and calls them."""

import ctypes
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

import jax_bfc

Source = Literal["bfc", "malloc", "output"]
SOURCES: tuple[Source, ...] = get_args(Source)


class KernelLibrary:
    """A library of kernels, with every operation registered for every source.

    An operation is the FFI target "transformer.<operation>.<source>", where the
    source says where its scratch comes from: jax_bfc's arena ("bfc"), an extra
    output of the custom call ("output"), or what else the platform has.
    """

    platform: ClassVar[str]
    # The operations, and how many sizes their need for scratch depends on.
    operations: ClassVar[Mapping[str, int]]
    # The sources, by name, as the tables call them; and the one that times are
    # compared with.
    sources: ClassVar[Mapping[str, str]]
    baseline: ClassVar[str]
    # Those that XLA may capture into CUDA graphs; none of them are in the tables.
    graph_sources: ClassVar[tuple[str, ...]] = ()

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        # The largest workspace that one call was given as an output, in bytes.
        self.largest_output_workspace = 0
        for operation, sizes in self.operations.items():
            workspace = self._library[f"transformer_{operation}_workspace"]
            workspace.argtypes = [ctypes.c_int64] * (sizes + 1)
            workspace.restype = ctypes.c_uint64
            for source in (*self.sources, *self.graph_sources):
                handler = self._library[f"transformer_{operation}_{source}"]
                capsule = jax.ffi.pycapsule(handler)
                target = f"transformer.{operation}.{source}"
                if source.startswith("bfc"):
                    jax_bfc.register_ffi_target(target, capsule, platform=self.platform)
                else:
                    jax.ffi.register_ffi_target(target, capsule, platform=self.platform)

    @property
    def description(self) -> str:
        """What the kernels run on."""
        raise NotImplementedError

    @property
    def attributes(self) -> dict[str, np.generic]:
        """What every call has to tell its handler."""
        return {}

    def workspace_bytes(
        self, operation: str, sizes: Sequence[int], operands: Sequence[jax.Array]
    ) -> int:
        """Scratch of one call: what an extra output has to provide."""
        function = self._library[f"transformer_{operation}_workspace"]
        return int(function(*sizes, self._last_size(operands)))

    def _last_size(self, operands: Sequence[jax.Array]) -> int:
        """What the need for scratch depends on beside an operation's own sizes."""
        raise NotImplementedError

    def peaks(self) -> dict[str, int]:
        """Most bytes of scratch held at once since the reset, by source."""
        return {
            "bfc": jax_bfc.memory_stats()["peak_bytes_in_use"],
            "output": self.largest_output_workspace,
        }

    def reset_peaks(self) -> None:
        self.largest_output_workspace = 0
        jax_bfc.reset_peak_memory_stats()

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
        """Calls the kernel in a traced program; returns an array for each result.

        `sizes` are those that workspace_bytes() takes for this operation.
        """
        results = list(results)
        as_output = source.startswith("output")
        if as_output:
            nbytes = self.workspace_bytes(operation, sizes, operands)
            self.largest_output_workspace = max(self.largest_output_workspace, nbytes)
            results.insert(0, jax.ShapeDtypeStruct((nbytes,), jnp.uint8))
        function = jax.ffi.ffi_call(
            f"transformer.{operation}.{source}", results, vmap_method=vmap_method
        )
        outputs = function(*operands, **self.attributes, **attributes)
        return list(outputs)[1:] if as_output else list(outputs)


class Kernels(KernelLibrary):
    """The kernels of the CPU. Scratch can come from malloc in the handler too."""

    platform = "cpu"
    operations: ClassVar[Mapping[str, int]] = {
        "attention_forward": 4,
        "attention_backward": 4,
        "cross_entropy_forward": 3,
        "cross_entropy_backward": 3,
        "int8_matmul": 3,
        "sample": 2,
    }
    sources: ClassVar[Mapping[str, str]] = {
        "bfc": "jax_bfc",
        "malloc": "malloc in handler",
        "output": "extra XLA output",
    }
    baseline = "malloc"

    def __init__(self, library: Path) -> None:
        super().__init__(library)
        # Extra outputs are sized when a program is traced, when it is not known
        # how many threads will run it: no more than this, for every source.
        self.max_threads = os.cpu_count() or 1
        self._library.transformer_isa.restype = ctypes.c_char_p
        self._library.transformer_malloc_peak_bytes.restype = ctypes.c_uint64

    @property
    def isa(self) -> str:
        """The instruction set in use: "avx512", "avx2" or "baseline"."""
        name: bytes = self._library.transformer_isa()
        return name.decode()

    @property
    def description(self) -> str:
        return f"{self.max_threads} cores, kernels for {self.isa}"

    @property
    def attributes(self) -> dict[str, np.generic]:
        return {"max_threads": np.int64(self.max_threads)}

    def _last_size(self, operands: Sequence[jax.Array]) -> int:
        return self.max_threads

    def peaks(self) -> dict[str, int]:
        malloc = int(self._library.transformer_malloc_peak_bytes())
        return {**super().peaks(), "malloc": malloc}

    def reset_peaks(self) -> None:
        super().reset_peaks()
        self._library.transformer_malloc_reset_peak()
