"""Scratch memory for Python code."""

import operator
import threading
from types import TracebackType
from typing import Any

from jax_bfc import _core
from jax_bfc._core import Scratch
from jax_bfc._devices import ordinal_or_default
from jax_bfc._errors import OutOfMemoryError

__all__ = ["Scratch", "scratch"]


class _ScratchBlock:
    """The context manager that :func:`scratch` returns.

    May be entered again while it is open, and by several threads: each entry
    allocates, and leaving ends the entry that the thread made last.
    """

    def __init__(self, ordinal: int, nbytes: int, alignment: int) -> None:
        self._request = ordinal, nbytes, alignment
        self._thread = threading.local()

    def __enter__(self) -> Scratch:
        allocated = _core.allocate(*self._request)
        if isinstance(allocated, dict):
            raise OutOfMemoryError(**allocated)
        if not hasattr(self._thread, "open"):
            self._thread.open = []
        self._thread.open.append(allocated)
        return allocated

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._thread.open.pop().close()


def _size(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name}={value!r} is a {type(value).__name__}; valid: an int"
        ) from None


def scratch(
    nbytes: int, *, device: Any = None, alignment: int = 256, stream: Any = None
) -> _ScratchBlock:
    """Scratch memory for the length of a ``with`` block::

        with jax_bfc.scratch(1 << 20) as s:
            view = np.frombuffer(s, np.float32)

    The memory is not initialised. ``s`` has ``.ptr`` (an int), ``.nbytes``, DLPack
    and the buffer protocol. It ends with the block, or later with the last array
    or memoryview that was made from it inside.

    Args:
        nbytes: the size, in bytes; 0 is good.
        device: a CPU ``jax.Device``, or None for the default one.
        alignment: of the address: a power of two up to 2 MiB; 256 at least.
        stream: for GPUs; None on CPU.

    Raises:
        OutOfMemoryError: entering the block, where it does not fit.
        ValueError: a size or alignment that is not valid, or a stream on CPU.
        TypeError: a value of the wrong type.
    """
    nbytes = _size("nbytes", nbytes)
    if not 0 <= nbytes <= _core.MAX_REQUEST:
        raise ValueError(f"nbytes={nbytes}; valid: 0 to {_core.MAX_REQUEST}")
    alignment = _size("alignment", alignment)
    if not 0 < alignment <= _core.MAX_ALIGNMENT or alignment & (alignment - 1):
        raise ValueError(
            f"alignment={alignment}; valid: a power of two up to {_core.MAX_ALIGNMENT}"
        )
    if stream is not None:
        raise ValueError(f"stream={stream!r}; valid on CPU: None")
    return _ScratchBlock(ordinal_or_default(device), nbytes, alignment)
