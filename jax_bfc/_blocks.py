"""Reads a file block by block, gzip-compressed if the name ends in ``.gz``.

A block is whole lines, so that many can be looked at together; what a file may
unpack to is bounded.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import os
import sys
import zlib
from collections.abc import Iterator
from typing import IO, Final, Protocol

__all__ = ["MAX_LINE", "Source", "TraceError", "open_source", "whole_lines"]

MAX_LINE: Final = 4096
"""Characters of the longest line, its end included."""

_BLOCK: Final = 1 << 18
# Traces shrink five- to tenfold; a file that unpacks to both of these is a bomb.
_BOMB_RATIO: Final = 100
_BOMB_BYTES: Final = 1 << 20
_BOMB_LOOK: Final = 1 << 26


class TraceError(ValueError):
    """A file that cannot be read; the text names file and line."""


class Source:
    """What a file holds, unpacked, from its start to its end.

    Attributes:
        name: as it was given; "-" is standard input.
    """

    def __init__(self, name: str, blocks: Iterator[bytes]) -> None:
        self.name = name
        self._blocks = blocks
        self._ahead = b""

    def start(self, size: int) -> bytes:
        """So many of the first bytes, which stay to be read, or all there are."""
        while len(self._ahead) < size and (block := next(self._blocks, b"")):
            self._ahead += block
        return self._ahead[:size]

    def blocks(self) -> Iterator[bytes]:
        """All of it, in blocks of any size."""
        if self._ahead:
            yield self._ahead
            self._ahead = b""
        yield from self._blocks


@contextlib.contextmanager
def open_source(name: str) -> Iterator[Source]:
    """A file, or standard input if the name is "-".

    Unpacked if its name ends in ``.gz``, or if standard input is gzip data.

    Raises:
        OSError: the file cannot be read.
        TraceError: it unpacks without end, or is no gzip data, or is, but does not
            say so.
    """
    with _open(name) as raw:
        is_gzip = name.endswith(".gz")
        if not is_gzip and raw.peek(2)[:2] == b"\x1f\x8b":
            if name != "-":
                raise TraceError(
                    f"{name}: is gzip data; valid: a name that ends in .gz"
                )
            is_gzip = True
        if not is_gzip:
            yield Source(name, _unpacked(name, raw, None))
            return
        if raw.seekable() and name != "-":  # which may be in its middle
            _look_for_a_bomb(name, raw)
        with gzip.GzipFile(fileobj=raw) as unpacked:
            yield Source(name, _unpacked(name, unpacked, raw))


@contextlib.contextmanager
def _open(name: str) -> Iterator[io.BufferedReader]:
    if name != "-":
        raw = io.FileIO(name)
    else:
        if sys.stdin is None:
            raise OSError(errno.EBADF, "standard input is closed")
        # A descriptor of its own, which is closed here.
        raw = io.FileIO(os.dup(0))
    file: io.BufferedReader = io.BufferedReader(raw) if raw.seekable() else _Pipe(raw)
    with file:
        yield file


class _Pipe(io.BufferedReader):
    """Knows how much was read of it."""

    _position = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self._position += len(data)
        return data

    def tell(self) -> int:
        return self._position


def whole_lines(source: Source) -> Iterator[tuple[int, bytes]]:
    """Blocks of lines, each with the number of its first line.

    The first line is a block of its own. A block without a newline at its end is
    the file's last line, or the start of one that is too long; then it is the last.
    """
    number = 1  # of the first line in `rest`
    rest = b""
    for block in source.blocks():
        rest += block
        if number == 1 and (end := rest.find(b"\n") + 1):
            yield number, rest[:end]
            number, rest = 2, rest[end:]
        if end := rest.rfind(b"\n") + 1:
            yield number, rest[:end]
            number, rest = number + rest.count(b"\n"), rest[end:]
        if len(rest) >= MAX_LINE:
            break
    if rest:
        yield number, rest


def _look_for_a_bomb(name: str, raw: IO[bytes]) -> None:
    """Unpacks the start without reading it, which takes no time.

    `_unpacked` refuses what unpacks without end wherever that begins, but the lines
    before it would all be read first.
    """
    unpacked = 0
    with gzip.GzipFile(fileobj=raw) as source:
        for block in _unpacked(name, source, raw):
            unpacked += len(block)
            if unpacked >= _BOMB_LOOK:
                break
    raw.seek(0)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def _unpacked(
    name: str, source: _Readable, packed: IO[bytes] | None
) -> Iterator[bytes]:
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
