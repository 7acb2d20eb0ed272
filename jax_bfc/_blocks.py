"""Reads a trace's file block by block, gzip-compressed if the name ends in ``.gz``.

A block is whole lines, so that many can be looked at together; what a file may
unpack to is bounded.
"""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from typing import IO, Final, Protocol

__all__ = ["MAX_LINE", "TraceError", "open_blocks"]

MAX_LINE: Final = 4096
"""Characters of the longest line, its end included."""

_BLOCK: Final = 1 << 18
# Traces shrink five- to tenfold; a file that unpacks to both of these is a bomb.
_BOMB_RATIO: Final = 100
_BOMB_BYTES: Final = 1 << 20
_BOMB_LOOK: Final = 1 << 26


class TraceError(ValueError):
    """A trace file that cannot be read; the text names file and line."""


class _Source(Protocol):
    def read(self, size: int, /) -> bytes: ...


@contextlib.contextmanager
def open_blocks(name: str) -> Iterator[Iterator[tuple[int, bytes]]]:
    """Blocks of lines, each with the number of its first line.

    The first line is a block of its own. A block without a newline at its end is
    the file's last line, or the start of one that is too long; then it is the last.

    Raises:
        OSError: the file cannot be read.
        TraceError: it unpacks without end, or is no gzip data, or is, but does not
            say so.
    """
    with open(name, "rb") as raw:
        if name.endswith(".gz"):
            if raw.seekable():
                _look_for_a_bomb(name, raw)
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield _whole_lines(name, unpacked, raw)
        else:
            yield _whole_lines(name, raw, None)


def _whole_lines(
    name: str, source: _Source, packed: IO[bytes] | None
) -> Iterator[tuple[int, bytes]]:
    number = 1  # of the first line in `rest`
    rest = b""
    for block in _unpacked(name, source, packed):
        if number == 1 and not rest and block.startswith(b"\x1f\x8b"):
            raise TraceError(f"{name}: is gzip data; valid: a name that ends in .gz")
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


def _unpacked(name: str, source: _Source, packed: IO[bytes] | None) -> Iterator[bytes]:
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
