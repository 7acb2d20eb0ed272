"""What a recording holds, and reading one back."""

import codecs
import os
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from jax_bfc import _core
from jax_bfc._blocks import MAX_LINE, Source, TraceError, open_source, whole_lines
from jax_bfc._output import replacing, spool_of

__all__ = ["EVENT", "KINDS", "Recording", "RecordingError", "read_recording"]

EVENT: Final = np.dtype(
    {
        "names": [
            "time_ns",
            "address",
            "id",
            "requested_bytes",
            "chunk_bytes",
            "kernel",
            "kind",
            "pool",
            "lane",
            "slot",
        ],
        "formats": [*["<u8"] * 5, "<u2", "u1", "<u2", "u1", "u1"],
        "offsets": [0, 8, 16, 24, 32, 40, 44, 42, 45, 46],
        "itemsize": 48,
    }
)
"""An event, as the native side has it; ``kernel`` is an index, or NO_KERNEL."""
KINDS: Final = (
    "allocate",
    "free",
    "held",
    "grow",
    "trim",
    "pin",
    "unpin",
    "failure",
)
NO_KERNEL: Final = 0xFFFF
HEADER: Final = (
    "Thread,Time,Action,Pointer,Size,Stream,event,id,chunk_bytes,device,kernel,label"
)
MAX_EVENTS: Final = 1 << 21
"""Of a file that is read into memory."""
_TOO_MUCH: Final = 1 << 63
_MAX_KERNELS: Final = 4096


class RecordingError(ValueError):
    """A recording that cannot be read; the text names file and line."""


class Recording:
    """What :func:`jax_bfc.record` recorded, from the end of its block on.

    Attributes:
        path: of the CSV file; None where the events are in memory.
        time: when it began, in seconds since 1970, UTC; 0 where that is not known.
        num_events: that happened.
        dropped: of those, how many are not kept, because newer ones came or the
            file could not be written.
        is_cut: whether the file has more events than were read of it.
    """

    def __init__(self, *, path: str | None, time: float) -> None:
        self.path = path
        self.time = time
        self.num_events = 0
        self.dropped = 0
        self.is_cut = False
        self._has_ended = False
        self._events: npt.NDArray[Any] | None = None
        self._kernels: list[tuple[str, str]] = []
        # Of a trace: its devices, if not the pools', and the unit of its times.
        self._devices: tuple[str, ...] | None = None
        self._unit = "ns"

    def _finish(
        self,
        count: int,
        dropped: int,
        data: bytes,
        kernels: list[tuple[str, str]],
        *,
        in_file: bool,
    ) -> None:
        self.num_events, self.dropped = count, dropped
        self._kernels = kernels
        self._has_ended = True
        if not in_file:
            self._events = np.frombuffer(data, EVENT)

    @property
    def events(self) -> npt.NDArray[Any]:
        """The events that were kept, in order: a structured array.

        Fields: ``time_ns`` since the recording began, ``kind`` (an index into
        ``jax_bfc.Recording.KINDS``), ``requested_bytes``, ``chunk_bytes``,
        ``address``, ``id`` (of the allocation), ``kernel`` (an index into
        :attr:`kernels`, or 65535), ``pool``, ``lane``, ``slot``.

        Raises:
            RuntimeError: inside the block.
            RecordingError: the events are in a file with more than 2,097,152.
        """
        if self._events is None:
            if self.path is None or not self._has_ended:
                raise RuntimeError("jax_bfc.record: the recording has not ended")
            other = read_recording(self.path)
            self._events, self._kernels = other.events, other.kernels
        return self._events

    KINDS = KINDS

    @property
    def kernels(self) -> list[tuple[str, str]]:
        """Kernels and labels ("" for none), by the events' ``kernel``."""
        return self._kernels

    def _device(self, pool: int) -> str:
        return device_name(pool) if self._devices is None else self._devices[pool]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes what was kept in memory as CSV, as ``record(path)`` does.

        What was allocated before the oldest event that is kept, and freed after
        it, is left out, so that the file can be replayed.

        Raises:
            RuntimeError: inside the block.
            OSError: the file cannot be written.
        """
        events = self.events
        kinds = events["kind"]
        begins = np.isin(kinds, (KINDS.index("allocate"), KINDS.index("held")))
        known = np.isin(events["id"], events["id"][begins])
        kept = events[(kinds != KINDS.index("free")) | known]
        name = os.fspath(path)
        with replacing(name) as file:
            with spool_of(name, file) as text:
                error = _core.write_events(text.fileno(), kept.tobytes())
            if error != 0:
                raise OSError(error, os.strerror(error), name)


def device_name(pool: int) -> str:
    """Of the pool with this index: "cpu:0"."""
    if pool >= _core.MAX_HOST_POOLS:
        return f"cuda:{pool - _core.MAX_HOST_POOLS}"
    return f"cpu:{pool}"


def _pool_index(device: str) -> int:
    match = re.fullmatch(r"(cpu|cuda):([0-9]{1,4})", device)
    if match is None:
        raise ValueError(device)
    first, end = (
        (0, _core.MAX_HOST_POOLS)
        if match[1] == "cpu"
        else (_core.MAX_HOST_POOLS, _core.MAX_POOLS)
    )
    if first + int(match[2]) >= end:
        raise ValueError(device)
    return first + int(match[2])


def is_recording(start: bytes) -> bool:
    """Whether a file that starts like this begins with a recording's header."""
    line = start.removeprefix(codecs.BOM_UTF8).partition(b"\n")[0]
    return line.strip() == HEADER.encode()


def read_recording(
    path: str | os.PathLike[str], *, first: int | None = None
) -> Recording:
    """Reads the CSV file of a recording, gzip-compressed if the name ends in ``.gz``:
    some 2 microseconds a line.

    Args:
        first: how many events to read at most; None: all of them.

    Raises:
        RecordingError: the file cannot be read, is no recording, or all of it was
            asked for and is more than 2,097,152 events.
    """
    name = os.fspath(path)
    try:
        with open_source(name) as source:
            return recording_from(source, first=first)
    except OSError as error:
        raise RecordingError(
            f"{name}: cannot be read: {error.strerror or error}"
        ) from error
    except TraceError as error:
        raise RecordingError(str(error)) from error


def recording_from(source: Source, *, first: int | None = None) -> Recording:
    """As :func:`read_recording`.

    Raises:
        RecordingError: it is no recording, or too long.
        TraceError: it cannot be unpacked.
        OSError: it cannot be read.
    """
    return _read(source.name, _lines(source), first)


def _lines(source: Source) -> Iterator[bytes]:
    for _, block in whole_lines(source):
        yield from block.removesuffix(b"\n").split(b"\n")


def _read(name: str, lines: Iterator[bytes], first: int | None) -> Recording:
    if not is_recording(next(lines, b"")):
        raise RecordingError(f"{name}:1: is no recording; valid: the header {HEADER}")
    kinds = {kind.encode(): i for i, kind in enumerate(KINDS)}
    tails: dict[bytes, tuple[int, int]] = {}  # of lines: pool and kernel
    kernels: dict[tuple[str, str], int] = {}
    rows = []
    blocks = []
    last = 0
    more = False
    for number, line in enumerate(lines, start=2):
        if number - 2 == first:
            more = True
            break
        try:
            if len(line) >= MAX_LINE:
                raise ValueError
            # Thread,Time,Action,Pointer,Size,Stream,event,id,chunk_bytes, and rest.
            fields = line.split(b",", 9)
            tail = tails.get(fields[9])
            if tail is None:
                tail = _tail(fields[9], kernels)
                if len(tails) < _MAX_KERNELS:  # mostly all
                    tails[fields[9]] = tail
            time_ns, address = int(fields[1]), int(fields[3], 16)
            identity, size, chunk = int(fields[7]), int(fields[4]), int(fields[8])
            lane, slot = int(fields[5]), int(fields[0])
            if not (
                last <= time_ns < _TOO_MUCH
                and 0 <= address < _TOO_MUCH
                and 0 <= identity < 1 << 64
                and 0 <= size < _TOO_MUCH
                and 0 <= chunk < _TOO_MUCH
                and 0 <= lane < 256
                and 0 <= slot < 256
            ):
                raise ValueError
            pool, kernel = tail
            kind = kinds[fields[6]]
            last = time_ns
        except (ValueError, KeyError, IndexError):
            raise RecordingError(
                f"{name}:{number}: is no event of a recording; valid: lines as "
                "jax_bfc.record() writes them, in order of time"
            ) from None
        rows.append(
            (time_ns, address, identity, size, chunk, kernel, kind, pool, lane, slot)
        )
        if len(rows) == 1 << 14:
            blocks.append(np.array(rows, EVENT))
            rows.clear()
        if number - 1 > MAX_EVENTS:
            raise RecordingError(
                f"{name}: has more than {MAX_EVENTS:,} events; valid: fewer, such as a "
                "recording of fewer steps"
            )
    blocks.append(np.array(rows, EVENT))
    recording = Recording(path=name, time=0)
    recording._events = np.concatenate(blocks)
    unquote = urllib.parse.unquote
    recording._kernels = [(unquote(name), unquote(label)) for name, label in kernels]
    recording.num_events = len(recording._events)
    recording.is_cut = more
    recording._has_ended = True
    return recording


def _tail(text: bytes, kernels: dict[tuple[str, str], int]) -> tuple[int, int]:
    device, kernel, label = text.decode("ascii").strip().split(",")
    pool = _pool_index(device)
    if not kernel:
        return pool, NO_KERNEL
    key = kernel, label  # as written: to decode them all would take long
    if len(kernels) >= _MAX_KERNELS and key not in kernels:
        raise ValueError(kernel)
    return pool, kernels.setdefault(key, len(kernels))
