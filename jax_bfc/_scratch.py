"""Scratch memory for Python code."""

import operator
import threading
from types import TracebackType
from typing import Any

from jax_bfc import _core
from jax_bfc._core import Scratch
from jax_bfc._devices import index_or_default, is_cuda
from jax_bfc._errors import OutOfMemoryError

__all__ = ["Scratch", "scratch"]


class _ScratchBlock:
    """The context manager that :func:`scratch` returns.

    May be entered again while it is open, and by several threads: each entry
    allocates, and leaving ends the entry that the thread made last.
    """

    def __init__(
        self, index: int, nbytes: int, alignment: int, stream: int | None
    ) -> None:
        self._request = index, nbytes, alignment, stream
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


def _stream(value: Any) -> int | None:
    """The address of a CUDA stream, whoever made it."""
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if hasattr(value, "__cuda_stream__"):
        return int(value.__cuda_stream__()[1])
    # PyTorch, CuPy, Numba: before they had the protocol.
    for name in ("cuda_stream", "ptr", "handle"):
        handle = getattr(value, name, None)
        handle = getattr(handle, "value", handle)  # of a ctypes pointer
        if isinstance(handle, int):
            return handle
    raise TypeError(
        f"stream={value!r} is a {type(value).__name__}; valid: None, the address of "
        "a CUDA stream as an int, or a stream of PyTorch, CuPy or Numba"
    )


def scratch(
    nbytes: int, *, device: Any = None, alignment: int = 256, stream: Any = None
) -> _ScratchBlock:
    """Scratch memory for the length of a ``with`` block::

        with jax_bfc.scratch(1 << 20) as s:
            view = np.frombuffer(s, np.float32)

    The memory is not initialised. ``s`` has ``.ptr`` (an int), ``.nbytes``, DLPack,
    on CPU the buffer protocol, and on CUDA ``__cuda_array_interface__``. It ends
    with the block, or later with the last array or memoryview that was made from
    it inside by DLPack or the buffer protocol.

    Args:
        nbytes: the size, in bytes; 0 is good.
        device: a CPU or CUDA ``jax.Device``, or None for the default one.
        alignment: of the address: a power of two up to 2 MiB; 256 at least.
        stream: of a CUDA device, on which all work with the memory is submitted:
            an address, or a stream of PyTorch, CuPy or Numba. What comes later on
            it may get the memory at once when it ends. None: the memory is used
            again only when the device has done all that was submitted to it.

    Raises:
        OutOfMemoryError: entering the block, where it does not fit.
        ValueError: a size or alignment that is not valid, or a stream on CPU.
        TypeError: a value of the wrong type.
        RuntimeError: entering the block, where CUDA cannot be used.
    """
    nbytes = _size("nbytes", nbytes)
    if not 0 <= nbytes <= _core.MAX_REQUEST:
        raise ValueError(f"nbytes={nbytes}; valid: 0 to {_core.MAX_REQUEST}")
    alignment = _size("alignment", alignment)
    if not 0 < alignment <= _core.MAX_ALIGNMENT or alignment & (alignment - 1):
        raise ValueError(
            f"alignment={alignment}; valid: a power of two up to {_core.MAX_ALIGNMENT}"
        )
    index = index_or_default(device)
    if stream is not None and not is_cuda(index):
        raise ValueError(f"stream={stream!r}; valid on CPU: None")
    return _ScratchBlock(index, nbytes, alignment, _stream(stream))
