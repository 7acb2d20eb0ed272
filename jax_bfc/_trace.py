"""Reads allocation traces: ours (``op,id,bytes,stream``) and RMM's logs.

Both are CSV with a header line, gzip-compressed if the name ends in ``.gz``.
Files come from anywhere, so lines, events, sizes and the growth of what is
unpacked are all bounded, and whatever is wrong becomes one `TraceError` that
names the file, the line, and what would be valid.

Blocks of plain lines are parsed as a whole, which is several times faster. Any
other block is read line by line, which alone decides what is wrong with a line.
"""

from __future__ import annotations

import array
import dataclasses
import os
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from jax_bfc._blocks import MAX_LINE, Source, TraceError, open_source, whole_lines
from jax_bfc._plain_csv import split
from jax_bfc._trace_format import (
    ALLOCATE,
    FREE,
    HEADERS,
    MAX_BYTES,
    RMM,
    Layout,
    clip,
    fields_of,
    is_device,
    layout_of,
    show,
    size_of,
    text_of,
)

__all__ = ["MAX_BYTES", "MAX_EVENTS", "MAX_LIVE", "Trace", "TraceError", "read_trace"]

MAX_EVENTS: Final = 1 << 25
MAX_LIVE: Final = 1 << 20
"""The most allocations live at once."""
# Lines that are no event: blank, or without effect.
_MAX_IDLE: Final = 1 << 17

_MAX_DEVICES: Final = 256
# Line, ALLOCATE or FREE, key, size, index of the device.
_Event = tuple[int, int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Trace:
    """A valid trace: frees follow their allocations, nothing is freed twice.

    Attributes:
        path: as it was given.
        is_allocate: uint8 of shape (events,), 1 for an allocation, 0 for a free.
        ids: uint32 of shape (events,), the number of the allocation that the
            event is about, from 0 in order of appearance.
        bytes: uint64 of shape (events,), what was asked for; for a free, what
            its allocation asked for.
        devices: names, in order of appearance; none if the file has no such column.
        device: uint8 of shape (events,), the event's index into them.
        skipped: how many frees were passed over, see :func:`read_trace`.
    """

    path: str
    is_allocate: npt.NDArray[np.uint8]
    ids: npt.NDArray[np.uint32]
    bytes: npt.NDArray[np.uint64]
    devices: tuple[str, ...]
    device: npt.NDArray[np.uint8]
    skipped: int

    def __len__(self) -> int:
        return len(self.ids)

    def of_device(self, name: str) -> Trace:
        """The events of one device, whose allocations are numbered anew."""
        own = self.device == self.devices.index(name)
        _, ids = np.unique(self.ids[own], return_inverse=True)
        return Trace(
            path=self.path,
            is_allocate=self.is_allocate[own],
            ids=ids.astype(np.uint32),
            bytes=self.bytes[own],
            devices=(name,),
            device=np.zeros(len(ids), np.uint8),
            skipped=self.skipped,
        )


def read_trace(path: str | os.PathLike[str], *, from_middle: bool = False) -> Trace:
    """Reads a trace file; the path "-" is standard input.

    Streams are ignored, and so are RMM's failed allocations and its empty
    allocations at the null pointer.

    Args:
        from_middle: whether frees of what no line allocates are passed over, as in a
            log that does not begin with its program.

    Raises:
        TraceError: the file cannot be read or is no valid trace.
    """
    name = os.fspath(path)
    try:
        with open_source(name) as source:
            return trace_from(source, from_middle=from_middle)
    except OSError as error:
        reason = error.strerror or str(error)
        raise TraceError(f"{name}: cannot be read: {reason}") from error


def trace_from(source: Source, *, from_middle: bool = False) -> Trace:
    """As :func:`read_trace`; OSError where it cannot be read."""
    return _Reader(source.name, from_middle).read(whole_lines(source))


def is_trace(start: bytes) -> bool:
    """Whether a file that starts like this begins with a trace's header."""
    try:
        header = text_of("", 1, start.partition(b"\n")[0])
        layout_of("", 1, fields_of(header))
    except TraceError:
        return False
    return True


class _Reader:
    """What has been read of a file so far."""

    def __init__(self, name: str, from_middle: bool) -> None:
        self.name = name
        self.from_middle = from_middle
        self.skipped = 0
        self.devices: dict[str, int] = {}
        self.device = array.array("B")
        self.layout: Layout | None = None
        self.blank = 0  # lines
        self.ops = array.array("B")
        self.ids = array.array("I")
        self.sizes = array.array("Q")
        self.live: dict[int, tuple[int, int]] = {}  # key to number and bytes
        self.live_bytes = 0
        self.allocations = 0

    def read(self, blocks: Iterator[tuple[int, bytes]]) -> Trace:
        """Reads blocks of whole lines, each with the number of its first line."""
        for first, block in blocks:
            lines = self._lines(first, block)
            if self.layout is None:
                number, text = next(lines, (0, ""))
                if not text:
                    continue
                self.layout = layout_of(self.name, number, fields_of(text))
                events = self._careful(self.layout, lines)
            else:
                events = self._plain(self.layout, first, block) or self._careful(
                    self.layout, lines
                )
            self._take(self.layout, events, first, block)
        if self.layout is None:
            raise TraceError(
                f"{self.name}: is empty; valid: CSV with the header {HEADERS}"
            )
        if not self.ops:
            raise TraceError(
                f"{self.name}: has no events; valid: one or more lines after the header"
            )
        return Trace(
            path=self.name,
            is_allocate=np.frombuffer(self.ops, np.uint8),
            ids=np.frombuffer(self.ids, np.uint32),
            bytes=np.frombuffer(self.sizes, np.uint64),
            devices=tuple(self.devices),
            device=np.frombuffer(self.device, np.uint8),
            skipped=self.skipped,
        )

    def _lines(self, first: int, block: bytes) -> Iterator[tuple[int, str]]:
        """Numbers and texts of the lines that are not blank."""
        lines = block.removesuffix(b"\n").split(b"\n")
        for number, line in enumerate(lines, start=first):
            if text := text_of(self.name, number, line):
                yield number, text
                continue
            self.blank += 1
            if self.blank > _MAX_IDLE:
                raise TraceError(
                    f"{self.name}:{number}: {self.blank:,} blank lines; "
                    f"valid: at most {_MAX_IDLE:,}"
                )

    def _plain(self, at: Layout, first: int, block: bytes) -> Iterator[_Event] | None:
        """The events of a block of which every line is plain and valid by itself."""
        rows = split(block, at.num_fields, MAX_LINE)
        if rows is None or (words := rows.words(at.op, list(at.form.ops))) is None:
            return None
        ops = np.array([-1 if op is None else op for op in at.form.ops.values()])[words]
        is_event = ops >= 0
        numbers = np.arange(first, first + len(rows))[is_event]
        end = first + len(rows)
        if end - len(self.ops) - self.skipped - len(numbers) > _MAX_IDLE:
            return None
        rows, ops = rows[is_event], ops[is_event]
        keys = at.form.plain_keys(rows, at.key)
        sizes = rows.decimals(at.size)
        if (
            keys is None
            or sizes is None
            or rows.empty(at.key).any()
            or (rows.empty(at.size) & (ops == ALLOCATE)).any()
            or (sizes > MAX_BYTES).any()
            or (at.form is RMM and not (keys | sizes).all())
        ):
            return None
        if at.device is None:
            devices = [0] * len(rows)
        else:
            names = rows.short_words(at.device)
            if names is None or not all(map(is_device, names[0])):
                return None
            if len(self.devices.keys() | set(names[0])) > _MAX_DEVICES:
                return None
            of_name = np.array([self._device(name) for name in names[0]], np.intp)
            devices = of_name[names[1]].tolist()
        return zip(
            numbers.tolist(),
            ops.tolist(),
            keys.tolist(),
            sizes.tolist(),
            devices,
            strict=True,
        )

    def _device(self, name: str) -> int:
        return self.devices.setdefault(name, len(self.devices))

    def _careful(
        self, at: Layout, lines: Iterator[tuple[int, str]]
    ) -> Iterator[_Event]:
        """The events of any lines; refuses the first that is not valid by itself."""
        form = at.form
        for number, text in lines:
            fields = fields_of(text)
            where = f"{self.name}:{number}"
            # Checked before the line is looked at, so that what has no effect costs
            # little too.
            idle = number - len(self.ops) - self.skipped
            if idle > _MAX_IDLE:
                raise TraceError(
                    f"{where}: {idle:,} lines without an event; "
                    f"valid: at most {_MAX_IDLE:,}"
                )
            if len(fields) != at.num_fields:
                raise TraceError(
                    f"{where}: {len(fields)} fields; "
                    f"valid: {at.num_fields}, as the header"
                )
            try:
                op = form.ops[fields[at.op]]
            except KeyError:
                valid = ", ".join(form.ops)
                raise TraceError(
                    f"{where}: {form.op} is {show(fields[at.op])}; valid: {valid}"
                ) from None
            if op is None:
                continue
            try:
                key = form.parse_key(fields[at.key])
            except ValueError:
                raise TraceError(
                    f"{where}: {form.key} is {show(fields[at.key])}; "
                    f"valid: {form.key_text}"
                ) from None
            size = size_of(where, form, fields[at.size], optional=op == FREE)
            if form is RMM and key == 0 and size == 0:
                continue
            device = 0
            if at.device is not None:
                name = fields[at.device]
                full = len(self.devices) == _MAX_DEVICES and name not in self.devices
                if not is_device(name) or full:
                    raise TraceError(
                        f"{where}: device is {show(name)}; valid: up to "
                        f"{_MAX_DEVICES} names such as cpu:0"
                    )
                device = self._device(name)
            yield number, op, key, size, device

    def _take(
        self, at: Layout, events: Iterator[_Event], first: int, block: bytes
    ) -> None:
        """Adds a block's events; refuses the first that the earlier ones rule out."""
        live = self.live

        def key_of(number: int) -> str:
            line = block.split(b"\n")[number - first]
            return clip(fields_of(text_of(self.name, number, line))[at.key])

        for number, op, key, size, device in events:
            if device:
                key += device << 64
            if op == ALLOCATE:
                if key in live:
                    raise TraceError(
                        f"{self.name}:{number}: allocates {key_of(number)}, which is "
                        f"live; valid: one that is not"
                    )
                self.live_bytes += size
                if self.live_bytes > MAX_BYTES:
                    raise TraceError(
                        f"{self.name}:{number}: {self.live_bytes:,} bytes are live; "
                        f"valid: at most {MAX_BYTES:,}"
                    )
                if len(live) == MAX_LIVE:
                    raise TraceError(
                        f"{self.name}:{number}: too many allocations are live; "
                        f"valid: at most {MAX_LIVE:,}"
                    )
                event = live[key] = (self.allocations, size)
                self.allocations += 1
            else:
                if key not in live:
                    if self.from_middle:
                        self.skipped += 1
                        continue
                    raise TraceError(
                        f"{self.name}:{number}: frees {key_of(number)}, which is not "
                        f"live; valid: what an earlier line allocates, or "
                        "--from-middle for a log that does not begin with its program"
                    )
                event = live.pop(key)
                self.live_bytes -= event[1]
            if len(self.ops) == MAX_EVENTS:
                raise TraceError(
                    f"{self.name}:{number}: too many events; "
                    f"valid: at most {MAX_EVENTS:,}"
                )
            self.ops.append(op)
            self.ids.append(event[0])
            self.device.append(device)
            self.sizes.append(event[1])
