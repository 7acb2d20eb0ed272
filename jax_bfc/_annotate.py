"""Scratch as ranges in profilers."""

import atexit
import importlib
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

from jax_bfc import _core
from jax_bfc._summary import text_of_bytes

__all__ = ["annotate"]

# A function of the kernel's name and the bytes asked for, that begins a range; what
# it returns ends it.
_Begin = Callable[[str, int], Callable[[], object]]

atexit.register(_core.stop_ranges)  # nobody calls Python after that


def _jax() -> _Begin:
    import jax

    def begin(kernel: str, nbytes: int) -> Callable[[], object]:
        name = f"scratch {kernel}"
        annotation: Any = jax.profiler.TraceAnnotation(name, bytes=nbytes)
        annotation.__enter__()
        return lambda: annotation.__exit__(None, None, None)

    return begin


def _nvtx() -> _Begin:
    try:
        nvtx: Any = importlib.import_module("nvtx")
    except ImportError as error:
        raise ImportError(
            "profiler='nvtx' needs the package nvtx: pip install nvtx"
        ) from error

    def begin(kernel: str, nbytes: int) -> Callable[[], object]:
        text = f"scratch {kernel} {text_of_bytes(nbytes)}"
        range_id = nvtx.start_range(message=text, domain="jax_bfc")
        return lambda: nvtx.end_range(range_id)

    return begin


_PROFILERS: Final = {"jax": _jax, "nvtx": _nvtx}


class _Annotate:
    """The context manager that :func:`annotate` returns."""

    def __init__(self, begin: _Begin) -> None:
        self._begin = begin
        self._open: _core.Ranges | None = None

    def __enter__(self) -> None:
        # An interrupt before the store drops the only reference, and so ends it.
        ranges = _core.start_ranges(self._begin)
        if ranges is None:
            raise RuntimeError("jax_bfc.annotate: another such block is open")
        self._open = ranges

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


def annotate(profiler: str = "jax") -> _Annotate:
    """Shows scratch in profiles made inside a ``with`` block::

        with jax.profiler.trace("/tmp/profile"), jax_bfc.annotate():
            train_step(...).block_until_ready()

    Each allocation of a kernel, and of :func:`jax_bfc.scratch`, is a range
    "scratch NAME" from its allocation to its free, by the host's clock: on a GPU
    that is while the handler submits its work, which runs later. NAME is that of
    :func:`jax_bfc.kernel_stats`. What a CUDA graph replays calls no handler, and so
    is not there. What is held when the block begins is not there; what is held when
    it ends, ends there.

    Args:
        profiler: "jax" for ``jax.profiler`` (XProf, TensorBoard, Perfetto), where
            the bytes that were asked for are an argument of the range; or "nvtx"
            for NVIDIA's tools such as Nsight Systems, in the domain "jax_bfc", with
            the package `nvtx <https://pypi.org/project/nvtx>`_.

    Returns:
        A context manager; one such block may be open at a time.

    Raises:
        ValueError: another ``profiler``.
        ImportError: "nvtx" where that package is not installed.
        RuntimeError: entering, while another such block is open.

    Cost: inside the block each allocation and free takes Python's lock, on the
    thread that makes it: microseconds, and the wait for who has the lock. A thread
    that holds Python's lock must therefore not wait for a handler (JAX does not).
    Outside, the test of one word.
    """
    if profiler not in _PROFILERS:
        valid = ", ".join(map(repr, _PROFILERS))
        raise ValueError(f"profiler={profiler!r}; valid: {valid}")
    return _Annotate(_PROFILERS[profiler]())
