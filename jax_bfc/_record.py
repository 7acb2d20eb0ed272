"""Recordings of what happens in the pools, event by event."""

import logging
import os
import time
from types import TracebackType
from typing import Final

from jax_bfc import _core
from jax_bfc._output import check_writable, replacing, spool, spool_of
from jax_bfc._recording import Recording

__all__ = ["record"]

_log = logging.getLogger("jax_bfc")
_KEPT_EVENTS: Final = 1 << 18


class _Record:
    """The context manager that :func:`record` returns."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._running: _core.RunningRecording | None = None
        self._recording: Recording | None = None

    def __enter__(self) -> Recording:
        if self._recording is not None:
            raise RuntimeError("jax_bfc.record: call record() once for each with")
        recording = Recording(path=self._path, time=time.time())
        try:
            if self._path is None:
                self._running = _core.RunningRecording(-1, _KEPT_EVENTS)
            else:
                # Now, so that a path that cannot be written is known at once.
                check_writable(self._path)
                with spool(self._path) as file:
                    self._running = _core.RunningRecording(file.fileno(), _KEPT_EVENTS)
            self._recording = recording
            return recording
        except BaseException:
            # Also Ctrl-C: nobody would end it, and it ends when nobody holds it.
            self._running = None
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._recording is None or self._running is None:
            raise RuntimeError("jax_bfc.record: the block has ended, or not begun")
        running, self._running = self._running, None
        result = None
        try:
            result = _stop(running, self._path)
        finally:
            running.stop(-1)  # if an error came before that
            if result is None:  # or in a forked child, which records nothing
                self._recording._finish(0, 0, b"", [], in_file=False)
        if result is None:
            return
        count, dropped, reason, data = result
        self._recording._finish(
            count, dropped, data, _core.kernel_names(), in_file=self._path is not None
        )
        _log.info(
            "recorded %d events%s; %d of them are not kept",
            count,
            f" to {self._path}" if self._path else "",
            dropped,
        )
        if reason != 0:
            raise OSError(reason, os.strerror(reason), self._path or "")


def _stop(
    running: _core.RunningRecording, path: str | None
) -> tuple[int, int, int, bytes] | None:
    """Ends it and writes its file."""
    if path is None:
        return running.stop(-1)
    if running.is_of_a_parent():
        return None
    with replacing(path) as file, spool_of(path, file) as text:
        return running.stop(text.fileno())


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
    each, gzip-compressed if the name ends in ``.gz``. Until then a file that is
    already there stays as it is, also when the process dies inside the block.

    The CSV is RMM's log format with more columns, which
    ``python -m jax_bfc replay`` reads; ``python -m jax_bfc view`` draws it.

    Args:
        path: of the file to write, which is replaced; or None. A relative path is
            one of the folder that is current when ``record()`` is called.

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
    return _Record(None if path is None else os.path.abspath(os.fspath(path)))
