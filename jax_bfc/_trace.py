"""Reads allocation traces: ours (``op,id,bytes,stream``) and RMM's logs.

Both are CSV with a header line, gzip-compressed if the name ends in ``.gz``.
Files come from anywhere, so lines, events, sizes and the growth of what is
unpacked are all bounded, and whatever is wrong becomes one `TraceError` that
names the file, the line, and what would be valid.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Final, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["MAX_BYTES", "MAX_EVENTS", "MAX_LIVE", "Trace", "TraceError", "read_trace"]

MAX_BYTES: Final = 1 << 46
"""The largest request, and the most bytes live at once."""
MAX_EVENTS: Final = 1 << 25
MAX_LIVE: Final = 1 << 20
"""The most allocations live at once."""
MAX_LINE: Final = 4096
"""Characters of the longest line, its end included."""

_BLOCK: Final = 1 << 18
# Traces shrink five- to tenfold; a file that unpacks to both of these is a bomb.
_BOMB_RATIO: Final = 100
_BOMB_BYTES: Final = 1 << 20
_BOMB_LOOK: Final = 1 << 26

# Lines that are no event: blank, or without effect.
_MAX_IDLE: Final = 1 << 17

_ALLOCATE: Final = 1
_FREE: Final = 0


class _Source(Protocol):
    def read(self, size: int, /) -> bytes: ...


class TraceError(ValueError):
    """A trace file that cannot be read; the text names file and line."""


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
    key_text: str


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
    key_text="a whole number from 0 on",
)
_RMM: Final = _Format(
    op="Action",
    key="Pointer",
    size="Size",
    ops={"allocate": _ALLOCATE, "free": _FREE, "allocate failure": None},
    parse_key=_pointer,
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
        with _open(name) as lines:
            return _parse(name, lines)
    except OSError as error:
        reason = error.strerror or str(error)
        raise TraceError(f"{name}: cannot be read: {reason}") from error


@contextlib.contextmanager
def _open(name: str) -> Iterator[Iterator[tuple[int, str]]]:
    with open(name, "rb") as raw:
        if name.endswith(".gz"):
            if raw.seekable():
                _look_for_a_bomb(name, raw)
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield _lines(name, unpacked, raw)
        else:
            yield _lines(name, raw, None)


def _look_for_a_bomb(name: str, raw: IO[bytes]) -> None:
    """Unpacks the start without reading it, which takes no time.

    `_blocks` refuses what unpacks without end wherever that begins, but the lines
    before it would all be read first.
    """
    unpacked = 0
    with gzip.GzipFile(fileobj=raw) as source:
        for block in _blocks(name, source, raw):
            unpacked += len(block)
            if unpacked >= _BOMB_LOOK:
                break
    raw.seek(0)


def _blocks(name: str, source: _Source, packed: IO[bytes] | None) -> Iterator[bytes]:
    """What the file holds, block by block; refuses what unpacks without end."""
    total = 0
    while True:
        try:
            block = source.read(_BLOCK)
        except EOFError as error:
            raise TraceError(
                f"{name}: gzip data ends too early; valid: a whole .gz file"
            ) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise TraceError(
                f"{name}: not gzip data ({error}); valid: gzip, or a name that does "
                f"not end in .gz"
            ) from error
        if not block:
            return
        total += len(block)
        # What has been read of the packed file is rounded up to a buffer.
        if packed is not None and total > max(_BOMB_BYTES, packed.tell() * _BOMB_RATIO):
            raise TraceError(
                f"{name}: unpacks to {total:,} bytes or more, over {_BOMB_RATIO} times "
                f"its size; valid: a trace of less, or unpacked beforehand"
            )
        yield block


def _lines(
    name: str, source: _Source, packed: IO[bytes] | None
) -> Iterator[tuple[int, str]]:
    """Numbers and texts of the lines that are not blank."""
    number = blank = 0
    rest = b""
    for block in _blocks(name, source, packed):
        if number == 0 and block.startswith(b"\x1f\x8b"):
            raise TraceError(f"{name}: is gzip data; valid: a name that ends in .gz")
        pieces = (rest + block).split(b"\n")
        rest = pieces.pop()
        for piece in pieces:
            number += 1
            if text := _text(name, number, piece):
                yield number, text
                continue
            blank += 1
            if blank > _MAX_IDLE:
                raise TraceError(
                    f"{name}:{number}: {blank:,} blank lines; "
                    f"valid: at most {_MAX_IDLE:,}"
                )
        if len(rest) >= MAX_LINE:
            _text(name, number + 1, rest)
    if text := _text(name, number + 1, rest):
        yield number + 1, text


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
    if " " not in text and '"' not in text:  # nearly all, and much faster
        return text.split(",")
    return [field.strip().strip('"') for field in text.split(",")]


def _clip(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def _show(text: str) -> str:
    return repr(_clip(text))


def _columns(
    name: str, number: int, header: list[str]
) -> tuple[_Format, int, int, int]:
    """The format that the header line names, and where its columns are."""
    for form in (_OURS, _RMM):
        wanted = (form.op, form.key, form.size)
        if all(header.count(column) == 1 for column in wanted):
            op, key, size = (header.index(column) for column in wanted)
            return form, op, key, size
    raise TraceError(
        f"{name}:{number}: the header is {_show(','.join(header))}; valid: {_HEADERS}"
    )


def _parse(name: str, lines: Iterator[tuple[int, str]]) -> Trace:
    number, text = next(lines, (1, ""))
    if not text:
        raise TraceError(f"{name}: is empty; valid: CSV with the header {_HEADERS}")
    header = _fields(text)
    form, op_at, key_at, size_at = _columns(name, number, header)

    ops = array.array("B")
    ids = array.array("I")
    sizes = array.array("Q")
    live: dict[int, tuple[int, int]] = {}  # key to number and bytes
    live_bytes = 0
    allocations = 0

    for number, text in lines:
        fields = _fields(text)
        where = f"{name}:{number}"
        # Checked before the line is looked at, so that what has no effect costs
        # little too.
        if number - len(ops) > _MAX_IDLE:
            raise TraceError(
                f"{where}: {number - len(ops):,} lines without an event; "
                f"valid: at most {_MAX_IDLE:,}"
            )
        if len(fields) != len(header):
            raise TraceError(
                f"{where}: {len(fields)} fields; valid: {len(header)}, as the header"
            )
        try:
            op = form.ops[fields[op_at]]
        except KeyError:
            valid = ", ".join(form.ops)
            raise TraceError(
                f"{where}: {form.op} is {_show(fields[op_at])}; valid: {valid}"
            ) from None
        if op is None:
            continue
        try:
            key = form.parse_key(fields[key_at])
        except ValueError:
            raise TraceError(
                f"{where}: {form.key} is {_show(fields[key_at])}; "
                f"valid: {form.key_text}"
            ) from None
        size = _size(where, form, fields[size_at], optional=op == _FREE)

        if form is _RMM and key == 0 and size == 0:
            continue
        if op == _ALLOCATE:
            if key in live:
                raise TraceError(
                    f"{where}: allocates {_clip(fields[key_at])}, which is live; "
                    f"valid: one that is not"
                )
            live_bytes += size
            if live_bytes > MAX_BYTES:
                raise TraceError(
                    f"{where}: {live_bytes:,} bytes are live; "
                    f"valid: at most {MAX_BYTES:,}"
                )
            if len(live) == MAX_LIVE:
                raise TraceError(
                    f"{where}: too many allocations are live; "
                    f"valid: at most {MAX_LIVE:,}"
                )
            event = live[key] = (allocations, size)
            allocations += 1
        else:
            if key not in live:
                raise TraceError(
                    f"{where}: frees {_clip(fields[key_at])}, which is not live; "
                    f"valid: what an earlier line allocates"
                )
            event = live.pop(key)
            live_bytes -= event[1]
        if len(ops) == MAX_EVENTS:
            raise TraceError(f"{where}: too many events; valid: at most {MAX_EVENTS:,}")
        ops.append(op)
        ids.append(event[0])
        sizes.append(event[1])

    if not ops:
        raise TraceError(
            f"{name}: has no events; valid: one or more lines after the header"
        )
    return Trace(
        path=name,
        is_allocate=np.array(ops, dtype=np.uint8),
        ids=np.array(ids, dtype=np.uint32),
        bytes=np.array(sizes, dtype=np.uint64),
    )


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
