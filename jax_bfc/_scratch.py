"""Scratch memory for Python code."""

import contextlib
import operator
import threading
from types import TracebackType
from typing import Any

from jax_bfc import _core
from jax_bfc._core import Scratch
from jax_bfc._devices import index_or_default, is_cuda
from jax_bfc._errors import OutOfMemoryError
from jax_bfc._values import bytes_of

__all__ = ["Scratch", "scratch"]


def _here() -> object:
    """Who runs: the asyncio task, else the thread."""
    import asyncio  # here, because few programs need it

    with contextlib.suppress(RuntimeError):  # no loop runs in this thread
        if (task := asyncio.current_task()) is not None:
            return task
    return threading.current_thread()


class _ScratchBlock:
    """The context manager that :func:`scratch` returns.

    Each thread and each asyncio task has an entry of its own, at most one at a time,
    and ends that by leaving. Who leaves without one, as a thread does that closes
    another's ExitStack, ends the only entry; where several are open, nobody can say
    which is meant, so the memory of those that are left waits for as many to leave.
    Whatever is left of a block ends with the object.

    No lock is held, as a signal handler may come in anywhere: what happens to an
    entry is one store into the dict, after which no signal is looked for.
    """

    def __init__(
        self, index: int, nbytes: int, alignment: int, stream: int | None
    ) -> None:
        self._request = index, nbytes, alignment, stream
        self._open: dict[object, Scratch] = {}
        self._left_elsewhere = 0  # how often, of what is still open

    def __enter__(self) -> Scratch:
        here = _here()
        if here in self._open:
            raise RuntimeError(
                "jax_bfc.scratch: this block is open already; call scratch() once for "
                "each with"
            )
        allocated = _core.allocate(*self._request)
        if isinstance(allocated, dict):
            raise OutOfMemoryError(**allocated)
        self._open[here] = allocated
        return allocated

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        here = _here()
        if (own := self._open.get(here)) is not None:
            self._end(here, own)
        elif self._open:
            self._left_elsewhere += 1
        # Those of this moment: others may enter meanwhile.
        still_open = list(self._open.items())
        if len(still_open) <= self._left_elsewhere:
            for owner, scratch in still_open:
                self._end(owner, scratch)
            self._left_elsewhere = 0

    def _end(self, owner: object, scratch: Scratch) -> None:
        try:
            scratch.close()
        finally:
            if self._open.get(owner) is scratch:
                self._open.pop(owner, None)


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
    nbytes: int | str, *, device: Any = None, alignment: int = 256, stream: Any = None
) -> _ScratchBlock:
    """Scratch memory for the length of a ``with`` block::

        with jax_bfc.scratch(1 << 20) as s:
            view = np.frombuffer(s, np.float32)

    The memory is not initialised. ``s`` has ``.ptr`` (an int), ``.nbytes``, DLPack,
    on CPU the buffer protocol, and on CUDA ``__cuda_array_interface__``. It ends
    with the block, or later with the last array or memoryview that was made from
    it inside by DLPack or the buffer protocol.

    A block may be entered again once it was left, and by several threads or asyncio
    tasks at once: each gets memory of its own. It may be left by another thread than
    the one that entered it. Leaving a block that is not open does nothing.

    Args:
        nbytes: the size, in bytes or as text ("1MiB"); 0 is good.
        device: a CPU or CUDA ``jax.Device`` or its name ("cpu:0"), or None for the
            default one.
        alignment: of the address: a power of two up to 2 MiB; 256 at least.
        stream: of a CUDA device, on which all work with the memory is submitted:
            an address, or a stream of PyTorch, CuPy or Numba. What comes later on
            it may get the memory at once when it ends. None: the memory is used
            again only when the device has done all that was submitted to it.

    Raises:
        OutOfMemoryError: entering the block, where it does not fit.
        ValueError: a size or alignment that is not valid, or a stream on CPU.
        TypeError: a value of the wrong type.
        RuntimeError: entering the block, where CUDA cannot be used, or where the same
            thread or task has it open already.
    """
    if isinstance(nbytes, str):
        nbytes = bytes_of("nbytes", nbytes)
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
