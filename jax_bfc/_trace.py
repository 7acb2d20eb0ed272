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
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from jax_bfc._blocks import MAX_LINE, TraceError, open_blocks
from jax_bfc._plain_csv import PlainCsv, split

__all__ = ["MAX_BYTES", "MAX_EVENTS", "MAX_LIVE", "Trace", "TraceError", "read_trace"]

MAX_BYTES: Final = 1 << 46
"""The largest request, and the most bytes live at once."""
MAX_EVENTS: Final = 1 << 25
MAX_LIVE: Final = 1 << 20
"""The most allocations live at once."""
# Lines that are no event: blank, or without effect.
_MAX_IDLE: Final = 1 << 17

_ALLOCATE: Final = 1
_FREE: Final = 0
_Event = tuple[int, int, int, int]  # line, _ALLOCATE or _FREE, key, size


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
    """

    path: str
    is_allocate: npt.NDArray[np.uint8]
    ids: npt.NDArray[np.uint32]
    bytes: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.ids)


@dataclasses.dataclass(frozen=True)
class _Format:
    """Which columns hold what, and how to read them."""

    op: str
    key: str
    size: str
    ops: dict[str, int | None]  # None: an event without effect, left out
    parse_key: Callable[[str], int]
    plain_keys: Callable[[PlainCsv, int], npt.NDArray[np.uint64] | None]
    key_text: str


@dataclasses.dataclass(frozen=True)
class _Layout:
    """A format, and where the header has its columns."""

    form: _Format
    num_fields: int
    op: int
    key: int
    size: int


def _decimal(text: str) -> int:
    # int() alone would also take "1_000", "+1" and digits of other scripts.
    if not (text.isascii() and text.isdigit()):
        raise ValueError(text)
    return int(text)


def _pointer(text: str) -> int:
    if text == "(nil)":
        return 0
    if text[:2] not in ("0x", "0X"):
        return _decimal(text)
    # At most 64 bits; int() alone would take any length, "_" and signs.
    if not (text[2:].isalnum() and len(text) <= 18):
        raise ValueError(text)
    return int(text[2:], 16)


_OURS: Final = _Format(
    op="op",
    key="id",
    size="bytes",
    ops={"a": _ALLOCATE, "f": _FREE},
    parse_key=_decimal,
    plain_keys=PlainCsv.decimals,
    key_text="a whole number from 0 on",
)
_RMM: Final = _Format(
    op="Action",
    key="Pointer",
    size="Size",
    ops={"allocate": _ALLOCATE, "free": _FREE, "allocate failure": None},
    parse_key=_pointer,
    plain_keys=PlainCsv.addresses,
    key_text="an address such as 0x7f0000000000",
)
_HEADERS: Final = "op,id,bytes,stream or Thread,Time,Action,Pointer,Size,Stream"


def read_trace(path: str | os.PathLike[str]) -> Trace:
    """Reads a trace file.

    Streams are ignored, and so are RMM's failed allocations and its empty
    allocations at the null pointer.

    Raises:
        TraceError: the file cannot be read or is no valid trace.
    """
    name = os.fspath(path)
    try:
        with open_blocks(name) as blocks:
            return _Reader(name).read(blocks)
    except OSError as error:
        reason = error.strerror or str(error)
        raise TraceError(f"{name}: cannot be read: {reason}") from error


def _text(name: str, number: int, line: bytes) -> str:
    if len(line) >= MAX_LINE:
        raise TraceError(
            f"{name}:{number}: a line of {MAX_LINE:,} characters or more; valid: CSV "
            f"with the header {_HEADERS}"
        )
    try:
        text = line.decode("ascii" if number > 1 else "utf-8-sig").strip()
    except UnicodeDecodeError:
        text = "\0"
    if not text.isprintable():
        raise TraceError(
            f"{name}:{number}: not text; valid: CSV with the header {_HEADERS}"
        )
    return text


def _fields(text: str) -> list[str]:
    if " " not in text and '"' not in text:
        return text.split(",")
    return [field.strip().strip('"') for field in text.split(",")]


def _clip(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def _show(text: str) -> str:
    return repr(_clip(text))


def _layout(name: str, number: int, header: list[str]) -> _Layout:
    """The format that the header line names, and where its columns are."""
    for form in (_OURS, _RMM):
        wanted = (form.op, form.key, form.size)
        if all(header.count(column) == 1 for column in wanted):
            return _Layout(form, len(header), *map(header.index, wanted))
    raise TraceError(
        f"{name}:{number}: the header is {_show(','.join(header))}; valid: {_HEADERS}"
    )


class _Reader:
    """What has been read of a file so far."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.layout: _Layout | None = None
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
                self.layout = _layout(self.name, number, _fields(text))
                events = self._careful(self.layout, lines)
            else:
                events = self._plain(self.layout, first, block) or self._careful(
                    self.layout, lines
                )
            self._take(self.layout, events, first, block)
        if self.layout is None:
            raise TraceError(
                f"{self.name}: is empty; valid: CSV with the header {_HEADERS}"
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
        )

    def _lines(self, first: int, block: bytes) -> Iterator[tuple[int, str]]:
        """Numbers and texts of the lines that are not blank."""
        lines = block.removesuffix(b"\n").split(b"\n")
        for number, line in enumerate(lines, start=first):
            if text := _text(self.name, number, line):
                yield number, text
                continue
            self.blank += 1
            if self.blank > _MAX_IDLE:
                raise TraceError(
                    f"{self.name}:{number}: {self.blank:,} blank lines; "
                    f"valid: at most {_MAX_IDLE:,}"
                )

    def _plain(self, at: _Layout, first: int, block: bytes) -> Iterator[_Event] | None:
        """The events of a block of which every line is plain and valid by itself."""
        rows = split(block, at.num_fields, MAX_LINE)
        if rows is None or (words := rows.words(at.op, list(at.form.ops))) is None:
            return None
        ops = np.array([-1 if op is None else op for op in at.form.ops.values()])[words]
        is_event = ops >= 0
        numbers = np.arange(first, first + len(rows))[is_event]
        end = first + len(rows)
        if end - len(self.ops) - len(numbers) > _MAX_IDLE:
            return None
        rows, ops = rows[is_event], ops[is_event]
        keys = at.form.plain_keys(rows, at.key)
        sizes = rows.decimals(at.size)
        if (
            keys is None
            or sizes is None
            or rows.empty(at.key).any()
            or (rows.empty(at.size) & (ops == _ALLOCATE)).any()
            or (sizes > MAX_BYTES).any()
            or (at.form is _RMM and not (keys | sizes).all())
        ):
            return None
        return zip(
            numbers.tolist(), ops.tolist(), keys.tolist(), sizes.tolist(), strict=True
        )

    def _careful(
        self, at: _Layout, lines: Iterator[tuple[int, str]]
    ) -> Iterator[_Event]:
        """The events of any lines; refuses the first that is not valid by itself."""
        form = at.form
        for number, text in lines:
            fields = _fields(text)
            where = f"{self.name}:{number}"
            # Checked before the line is looked at, so that what has no effect costs
            # little too.
            idle = number - len(self.ops)
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
                    f"{where}: {form.op} is {_show(fields[at.op])}; valid: {valid}"
                ) from None
            if op is None:
                continue
            try:
                key = form.parse_key(fields[at.key])
            except ValueError:
                raise TraceError(
                    f"{where}: {form.key} is {_show(fields[at.key])}; "
                    f"valid: {form.key_text}"
                ) from None
            size = _size(where, form, fields[at.size], optional=op == _FREE)
            if not (form is _RMM and key == 0 and size == 0):
                yield number, op, key, size

    def _take(
        self, at: _Layout, events: Iterator[_Event], first: int, block: bytes
    ) -> None:
        """Adds a block's events; refuses the first that the earlier ones rule out."""
        live = self.live

        def key_of(number: int) -> str:
            line = block.split(b"\n")[number - first]
            return _clip(_fields(_text(self.name, number, line))[at.key])

        for number, op, key, size in events:
            if op == _ALLOCATE:
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
                    raise TraceError(
                        f"{self.name}:{number}: frees {key_of(number)}, which is not "
                        f"live; valid: what an earlier line allocates"
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
            self.sizes.append(event[1])


def _size(where: str, form: _Format, text: str, *, optional: bool) -> int:
    """The bytes column; a free may leave it empty."""
    if optional and not text:
        return 0
    try:
        size = _decimal(text)
    except ValueError:
        size = -1
    if not 0 <= size <= MAX_BYTES:
        raise TraceError(
            f"{where}: {form.size} is {_show(text)}; "
            f"valid: a whole number from 0 to {MAX_BYTES:,}"
        )
    return size
