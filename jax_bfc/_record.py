"""Recordings of what happens in the pools, event by event."""

import contextlib
import logging
import os
import tempfile
import time
from types import TracebackType
from typing import IO, Final

from jax_bfc import _core
from jax_bfc._recording import Recording

__all__ = ["record"]

_log = logging.getLogger("jax_bfc")
_KEPT_EVENTS: Final = 1 << 18


class _Record:
    """The context manager that :func:`record` returns."""

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self._path = path
        self._files = contextlib.ExitStack()
        self._csv: IO[bytes] | None = None
        self._recording: Recording | None = None

    def __enter__(self) -> Recording:
        if self._recording is not None:
            raise RuntimeError("jax_bfc.record: call record() once for each with")
        spool = -1
        with contextlib.ExitStack() as files:
            if self._path is not None:
                # Now, so that a path that cannot be written is known at once.
                self._csv = files.enter_context(open(self._path, "wb"))
                folder = os.path.dirname(os.path.abspath(self._path))
                file = files.enter_context(tempfile.TemporaryFile(dir=folder))
                spool = file.fileno()
            refusal = _core.start_recording(spool, _KEPT_EVENTS)
            if refusal is not None:
                raise RuntimeError(f"jax_bfc.record: {refusal}")
            self._files = files.pop_all()
        self._recording = Recording(
            path=None if self._path is None else os.fspath(self._path),
            time=time.time(),
        )
        return self._recording

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._recording is not None
        with self._files:
            result = _core.stop_recording(
                -1 if self._csv is None else self._csv.fileno()
            )
        if result is None:  # in a forked child, which records nothing
            return
        count, dropped, reason, data = result
        self._recording._finish(count, dropped, data, _core.kernel_names())
        _log.info(
            "recorded %d events%s; %d of them are not kept",
            count,
            f" to {self._recording.path}" if self._csv else "",
            dropped,
        )
        if reason != 0:
            raise OSError(reason, os.strerror(reason), os.fspath(self._path or ""))


def record(path: str | os.PathLike[str] | None = None) -> _Record:
    """Records every event of every pool inside a ``with`` block::

        with jax_bfc.record("run.csv"):
            train_step(...).block_until_ready()

    Events are allocations, frees, growth, trims, what CUDA graphs pin, and
    requests that did not fit, each with its time, kernel, label, device, lane, and
    requested and chunk bytes. What is in use when the block begins comes first, as
    "held". One recording runs at a time.

    Without a path, the newest 262,144 events or somewhat more are kept in memory
    (12 MiB); ``.dropped`` says how many older ones were not. With one, every event
    is kept: each thread collects 1,024 events at a time, and then one that allocates
    writes what was collected to an unnamed file beside ``path`` (48 bytes an event)
    before it goes on. So memory is bounded (48 KiB a thread, and at most 64 times
    that on its way to the file), nothing is lost, and where the disk is slower than
    the program, the program waits for the disk. At the block's end the events are
    put in order and written to ``path`` as CSV, about 100 bytes and 0.1 microseconds
    each. A process that dies inside the block leaves an empty file.

    The CSV is RMM's log format with more columns, which
    ``python -m jax_bfc replay`` reads; ``python -m jax_bfc view`` draws it.

    Args:
        path: of the file to write, which is replaced; or None.

    Returns:
        A context manager that gives a :class:`Recording`, filled at its end.

    Raises:
        RuntimeError: entering, while another recording runs.
        OSError: entering, where the file cannot be made; leaving, where it could
            not be written: what was written by then is there.

    Cost: some milliseconds to begin in memory; then 25 to 40 nanoseconds an event
    more than without, to a fast disk too. While nothing is recorded, the test of one
    word for each allocation and free.
    """
    return _Record(path)
