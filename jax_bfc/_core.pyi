"""The native part of jax_bfc."""

from typing import Any


MAX_ALIGNMENT: int = 2097152

MAX_REQUEST: int = 140737488355328

MAX_HOST_POOLS: int = 128

def host_total_bytes() -> int: ...

def host_available_bytes() -> int: ...

def huge_pages_allowed() -> bool: ...

def host_budget_bytes() -> int: ...

def configure(ordinal: int | None, *, limit_bytes: int, initial_bytes: int, growth_factor: float, max_growth_bytes: int, preallocate: bool, huge_pages: bool | None) -> str | None: ...

def memory_stats(ordinal: int) -> dict[str, int]: ...

def kernel_stats(ordinal: int) -> dict[str, dict[str, int]]: ...

def trim(ordinal: int | None) -> int: ...

def reset(ordinal: int | None) -> str | None: ...

def reset_peaks(ordinal: int | None) -> None: ...

def last_oom_report(ordinal: int) -> str | None: ...

def register_target(name: str, execute: Any) -> tuple[Any, Any] | None: ...

def replay(is_allocate: Any, ids: Any, bytes: Any) -> dict[str, Any]: ...

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
        """(1, 0): DLPack's CPU device."""

    def close(self) -> None:
        """Ends the block's own hold on the memory."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

def allocate(ordinal: int, nbytes: int, alignment: int) -> Scratch | dict[str, Any]: ...
