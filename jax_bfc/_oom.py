"""Callbacks for when scratch does not fit."""

import atexit
from collections.abc import Callable

from jax_bfc import _core

__all__ = ["OomHandle", "on_oom"]

# The native side reads this list, and holds it until the interpreter's end.
_callbacks: list[Callable[[str], object]] = []
_at_end = False


@atexit.register
def _end() -> None:
    """From the interpreter's end on nobody is called: a request that does not fit
    then fails as it does without callbacks. JAX's own clean-up, which waits for
    what still runs, comes later: this was registered last."""
    global _at_end
    _at_end = True
    _core.set_oom_callbacks(None)


class _Entry:
    """A callback, so that one function may be registered several times."""

    def __init__(self, callback: Callable[[str], object]) -> None:
        self._callback = callback

    def __call__(self, report: str) -> None:
        self._callback(report)


class OomHandle:
    """What :func:`on_oom` returns."""

    def __init__(self, entry: _Entry) -> None:
        self._entry = entry

    def remove(self) -> None:
        """Ends the registration; a call that has begun goes on. May be repeated."""
        if self._entry in _callbacks:
            _callbacks.remove(self._entry)


def on_oom(callback: Callable[[str], object]) -> OomHandle:
    """Calls ``callback(report)`` when scratch does not fit, before that fails.

    The pool has then flushed its caches and has trimmed what it could. The
    callback may free what is not needed and may use jax_bfc, :func:`jax_bfc.trim`
    and :func:`jax_bfc.scratch` too; no lock of the pool is held. After all
    callbacks the request is tried once more, and if it still does not fit, it
    fails with its own error. A request inside a callback that does not fit fails
    at once. Several callbacks are called in the order of their registration.

    The callback runs on the thread that asked for scratch, which is mostly one of
    XLA's, while its program waits: it must not wait for JAX. What it raises goes to
    ``sys.unraisablehook``. It is not called for allocations of a CUDA graph's
    capture, where memory cannot be given back, nor at the interpreter's end.

    Args:
        callback: a function of the report's text, as
            :func:`jax_bfc.last_oom_report` has it; what it returns is ignored.

    Returns:
        A handle with ``.remove()``.

    Raises:
        TypeError: ``callback`` cannot be called.
    """
    if not callable(callback):
        raise TypeError(
            f"callback={callback!r} is a {type(callback).__name__}; valid: a function "
            "of one argument, the report's text"
        )
    entry = _Entry(callback)
    _callbacks.append(entry)
    if not _at_end:
        _core.set_oom_callbacks(_callbacks)
    return OomHandle(entry)
