"""The lines of traces: the two formats, and what is valid in each field."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from jax_bfc._blocks import MAX_LINE, TraceError
from jax_bfc._plain_csv import PlainCsv

MAX_BYTES: Final = 1 << 46
"""The largest request, and the most bytes live at once."""
ALLOCATE: Final = 1
FREE: Final = 0


@dataclasses.dataclass(frozen=True)
class Format:
    """Which columns hold what, and how to read them."""

    op: str
    key: str
    size: str
    ops: dict[str, int | None]  # None: an event without effect, left out
    parse_key: Callable[[str], int]
    plain_keys: Callable[[PlainCsv, int], npt.NDArray[np.uint64] | None]
    key_text: str


@dataclasses.dataclass(frozen=True)
class Layout:
    """A format, and where the header has its columns."""

    form: Format
    num_fields: int
    op: int
    key: int
    size: int
    device: int | None


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


_OURS: Final = Format(
    op="op",
    key="id",
    size="bytes",
    ops={"a": ALLOCATE, "f": FREE},
    parse_key=_decimal,
    plain_keys=PlainCsv.decimals,
    key_text="a whole number from 0 on",
)
RMM: Final = Format(
    op="Action",
    key="Pointer",
    size="Size",
    ops={"allocate": ALLOCATE, "free": FREE, "allocate failure": None},
    parse_key=_pointer,
    plain_keys=PlainCsv.addresses,
    key_text="an address such as 0x7f0000000000",
)
HEADERS: Final = "op,id,bytes,stream or Thread,Time,Action,Pointer,Size,Stream"


def text_of(name: str, number: int, line: bytes) -> str:
    if len(line) >= MAX_LINE:
        raise TraceError(
            f"{name}:{number}: a line of {MAX_LINE:,} characters or more; valid: CSV "
            f"with the header {HEADERS}"
        )
    try:
        text = line.decode("ascii" if number > 1 else "utf-8-sig").strip()
    except UnicodeDecodeError:
        text = "\0"
    if not text.isprintable():
        raise TraceError(
            f"{name}:{number}: not text; valid: CSV with the header {HEADERS}"
        )
    return text


def fields_of(text: str) -> list[str]:
    if " " not in text and '"' not in text:
        return text.split(",")
    return [field.strip().strip('"') for field in text.split(",")]


def is_device(name: str) -> bool:
    kind, _, number = name.partition(":")
    return 0 < len(name) <= 8 and kind.isalpha() and number.isdigit()


def clip(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def show(text: str) -> str:
    return repr(clip(text))


def layout_of(name: str, number: int, header: list[str]) -> Layout:
    """The format that the header line names, and where its columns are."""
    for form in (_OURS, RMM):
        wanted = (form.op, form.key, form.size)
        if all(header.count(column) == 1 for column in wanted):
            # Recordings have it; a device has addresses of its own.
            device = header.index("device") if header.count("device") == 1 else None
            op, key, size = map(header.index, wanted)
            return Layout(form, len(header), op, key, size, device)
    raise TraceError(
        f"{name}:{number}: the header is {show(','.join(header))}; valid: {HEADERS}"
    )


def size_of(where: str, form: Format, text: str, *, optional: bool) -> int:
    """The bytes column; a free may leave it empty."""
    if optional and not text:
        return 0
    try:
        size = _decimal(text)
    except ValueError:
        size = -1
    if not 0 <= size <= MAX_BYTES:
        raise TraceError(
            f"{where}: {form.size} is {show(text)}; "
            f"valid: a whole number from 0 to {MAX_BYTES:,}"
        )
    return size
