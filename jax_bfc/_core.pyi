"""The native part of jax_bfc."""

from collections.abc import Callable
from typing import Any


MAX_ALIGNMENT: int = 2097152

MAX_REQUEST: int = 140737488355328

MAX_HOST_POOLS: int = 2048

MAX_POOLS: int = 2112

def host_total_bytes() -> int: ...

def host_available_bytes() -> int: ...

def huge_pages_allowed() -> bool: ...

def limit_bytes(index: int) -> int: ...

def why_no_cuda() -> str | None: ...

def cuda_driver_version() -> str | None: ...

def cuda_memory(ordinal: int) -> tuple[int, int, int]: ...

def configure(index: int | None, *, memory_fraction: float | None, limit_bytes: int, initial_bytes: int, growth_factor: float, max_growth_bytes: int, preallocate: bool, huge_pages: bool | None, source: str) -> str | None: ...

def memory_stats(index: int) -> dict[str, int]: ...

def kernel_stats(index: int) -> dict[str, dict[str, int]]: ...

def trim(index: int | None) -> int: ...

def reset(index: int | None) -> str | None: ...

def reset_peaks(index: int | None) -> None: ...

def last_oom_report(index: int) -> str | None: ...

def register_target(name: str, execute: Any) -> tuple[Any, Any] | None: ...

def policies() -> tuple[str, ...]: ...

def replay(is_allocate: Any, ids: Any, bytes: Any, policy: str = 'bfc') -> dict[str, Any]: ...

def plan(is_allocate: Any, ids: Any, bytes: Any) -> dict[str, Any]: ...

class Scratch:
    """Scratch memory inside a `with jax_bfc.scratch()` block."""

    @property
    def ptr(self) -> int:
        """The address of the first byte. ValueError after the block."""

    @property
    def nbytes(self) -> int:
        """The size, in bytes."""

    def __dlpack__(self, **kwargs: Any) -> Any:
        """A DLPack capsule of uint8[nbytes] that keeps the memory."""

    def __dlpack_device__(self) -> tuple[int, int]:
        """DLPack's device: (1, 0) for the CPU, (2, ordinal) for CUDA."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """
        uint8[nbytes], on CUDA devices only. Does not keep the memory: valid inside the block.
        """

    def close(self) -> None:
        """Ends the block's own hold on the memory."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

def allocate(index: int, nbytes: int, alignment: int, stream: int | None = None) -> Scratch | dict[str, Any]: ...

def pools() -> list[tuple[int, str]]: ...

class PeakBlock:
    """An open block of jax_bfc.peak()."""

    def read(self) -> tuple[int, dict[str, int]]:
        """The peak so far in bytes, and by kernel."""

    def close(self) -> None:
        """Ends it: it reads 0 from now on."""

def open_peak(index: int) -> PeakBlock: ...

def snapshot(index: int) -> tuple[int, list[tuple[int, int | None, list[tuple[int, int, int, str | None, str, bool, bool]]]]]: ...

def set_oom_callbacks(callbacks: list[Any] | None) -> None: ...

class RunningRecording:
    """A recording that runs, until it is stopped or nobody holds it."""

    def __init__(self, file: int, kept_events: int) -> None: ...

    def is_of_a_parent(self) -> bool: ...

    def stop(self, file: int) -> tuple[int, int, int, bytes] | None:
        """Ends it: counts, and the events as bytes, or as CSV to the file."""

def write_events(file: int, events: bytes) -> int: ...

def kernel_names() -> list[tuple[str, str]]: ...

class Ranges:
    """An open block of jax_bfc.annotate()."""

    def close(self) -> None:
        """Ends it. May be repeated."""

def start_ranges(begin: Callable[[str, int], Callable[[], object]]) -> Ranges | None: ...

def stop_ranges() -> None: ...

def bench(index: int, workload: str, from_pool: bool, pairs: int) -> float: ...
