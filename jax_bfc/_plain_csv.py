"""Columns of plain CSV, all lines of a block at once.

For lines as programs write them. Whatever is out of the ordinary is None here, and
is for who reads line by line to understand or to refuse.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["PlainCsv", "split"]

_MAX_DIGITS = 18  # of a decimal; all such fit in 64 bits
_DIGITS = np.full(256, 255, np.uint8)  # by character; 255: none
_DIGITS[np.frombuffer(b"0123456789ABCDEF", np.uint8)] = np.arange(16)
_DIGITS[np.frombuffer(b"abcdef", np.uint8)] = np.arange(10, 16)


class PlainCsv:
    """Lines of printable ASCII that all have the same number of fields.

    Attributes:
        data: uint8, the text.
        starts: where fields start in it, of shape (lines, fields).
        ends: where their commas or newlines are.
    """

    def __init__(
        self,
        data: npt.NDArray[np.uint8],
        starts: npt.NDArray[np.intp],
        ends: npt.NDArray[np.intp],
    ) -> None:
        self.data, self.starts, self.ends = data, starts, ends

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, lines: npt.NDArray[np.bool_]) -> PlainCsv:
        """Some of the lines."""
        return PlainCsv(self.data, self.starts[lines], self.ends[lines])

    def empty(self, column: int) -> npt.NDArray[np.bool_]:
        """Whether the column's fields are empty."""
        return np.equal(self.starts[:, column], self.ends[:, column])

    def words(self, column: int, words: Sequence[str]) -> npt.NDArray[np.intp] | None:
        """Indices of the column's fields among the words; None: one is not."""
        starts = self.starts[:, column]
        lengths = self.ends[:, column] - starts
        indices = np.full(len(self), -1, np.intp)
        for i, word in enumerate(words):
            lines = np.flatnonzero(lengths == len(word))
            text = self.data[starts[lines, None] + np.arange(len(word))]
            same = text == np.frombuffer(word.encode(), np.uint8)
            indices[lines[same.all(axis=1)]] = i
        return None if (indices < 0).any() else indices

    def short_words(self, column: int) -> tuple[list[str], npt.NDArray[np.intp]] | None:
        """The different texts of the column in order of appearance, and the index of
        each line's; None: one has more than 8 characters."""
        starts, ends = self.starts[:, column], self.ends[:, column]
        at = starts[:, None] + np.arange(8)
        if (ends - starts > 8).any():
            return None
        text = self.data[np.minimum(at, len(self.data) - 1)]
        text[at >= ends[:, None]] = 0
        packed = text.view("<u8")[:, 0]
        values, first, index = np.unique(packed, return_index=True, return_inverse=True)
        order = np.argsort(first)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        names = [values[i].tobytes().rstrip(b"\0").decode() for i in order]
        return names, rank[index]

    def decimals(self, column: int) -> npt.NDArray[np.uint64] | None:
        """The column's numbers, empty ones as 0; None: one has other characters than
        digits, or more than 18."""
        return self._numbers(self.starts[:, column], self.ends[:, column], 10)

    def addresses(self, column: int) -> npt.NDArray[np.uint64] | None:
        """The column's numbers such as 0x7f; None: one is not such, or has more than
        16 digits."""
        starts, ends = self.starts[:, column], self.ends[:, column]
        # Behind the start of the last field may be nothing, if that is empty.
        x = self.data[np.minimum(starts + 1, len(self.data) - 1)] | 0x20
        if (
            (ends - starts < 3) | (self.data[starts] != ord("0")) | (x != ord("x"))
        ).any():
            return None
        return self._numbers(starts + 2, ends, 16)

    def _numbers(
        self, starts: npt.NDArray[np.intp], ends: npt.NDArray[np.intp], base: int
    ) -> npt.NDArray[np.uint64] | None:
        width = int((ends - starts).max(initial=0))
        if width > (16 if base == 16 else _MAX_DIGITS):
            return None
        # A row for each field, aligned to the right.
        at = ends[:, None] - np.arange(width, 0, -1)
        digits = _DIGITS[self.data[np.maximum(at, 0)]]
        digits[at < starts[:, None]] = 0
        if (digits >= base).any():
            return None
        powers = np.array([base**i for i in reversed(range(width))], np.uint64)
        numbers: npt.NDArray[np.uint64] = digits @ powers
        return numbers


def split(block: bytes, fields: int, longest: int) -> PlainCsv | None:
    """The lines of a block; None: they are not plain.

    Args:
        fields: that each line has.
        longest: that a line may be, its newline included.
    """
    data = np.frombuffer(block, np.uint8)
    newlines = data == ord("\n")
    if not newlines[-1] or (((data < 0x20) | (data > 0x7E)) != newlines).any():
        return None
    ends = np.flatnonzero(newlines | (data == ord(",")))
    if len(ends) % fields != 0:
        return None
    starts = np.append(0, ends[:-1] + 1)
    rows = PlainCsv(data, starts.reshape(-1, fields), ends.reshape(-1, fields))
    at_end = np.arange(fields) == fields - 1
    lengths = rows.ends[:, -1] - rows.starts[:, 0] + 1
    if (newlines[rows.ends] != at_end).any() or (lengths > longest).any():
        return None
    return rows
