"""A table of who holds what."""

import importlib
import importlib.util
import shutil
import sys
from collections.abc import Sequence
from typing import Any, Final

from jax_bfc import _core

__all__ = ["align", "print_summary", "text_of_bytes"]

_COLUMNS: Final = (
    "kernel",
    "calls",
    "allocs",
    "in use",
    "peak",
    "largest",
    "total",
    "pinned",
    "failed",
)


def text_of_bytes(size: int) -> str:
    """A size for people: "512 B", "1.5 MiB"."""
    if abs(size) < 1024:
        return f"{size} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if abs(value) < 1023.95:
            return f"{value:,.1f} {unit}"
    return f"{value / 1024:,.1f} TiB"


def align(rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> str:
    """Columns of equal width: the first ones to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i < text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _title(device: str, stats: dict[str, int]) -> str:
    size = text_of_bytes
    return (
        f"{device}: {size(stats['bytes_in_use'])} in use of "
        f"{size(stats['bytes_limit'])}, peak {size(stats['peak_bytes_in_use'])}, "
        f"{size(stats['pool_bytes'])} mapped, largest free "
        f"{size(stats['largest_free_block_bytes'])}"
    )


def _rows(index: int) -> list[tuple[str, ...]]:
    """The kernels, those that have held most at once first."""
    kernels = sorted(
        _core.kernel_stats(index).items(),
        key=lambda item: (-item[1]["peak_bytes_in_use"], item[0]),
    )
    return [
        (
            # A target may have any name: nothing of it may steer a terminal.
            "".join(c if c.isprintable() else "?" for c in name),
            f"{row['calls']:,}",
            f"{row['num_allocs']:,}",
            text_of_bytes(row["bytes_in_use"]),
            text_of_bytes(row["peak_bytes_in_use"]),
            text_of_bytes(row["largest_alloc_size"]),
            text_of_bytes(row["total_allocated_bytes"]),
            text_of_bytes(row["pinned_bytes"]),
            f"{row['num_failures']:,}",
        )
        for name, row in kernels
    ]


def _print_rich(title: str, rows: list[tuple[str, ...]]) -> None:
    # Not installed with the package: no types to check against.
    console_module: Any = importlib.import_module("rich.console")
    table_module: Any = importlib.import_module("rich.table")
    text_module: Any = importlib.import_module("rich.text")
    console = console_module.Console()
    table = table_module.Table(title=text_module.Text(title), title_justify="left")
    for i, column in enumerate(_COLUMNS):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(text_module.Text, row))
    # As wide as it would like to be. (A dumb terminal overrides a width without
    # a height.)
    endless = console_module.Console(width=1 << 16, height=25)
    width = endless.measure(table).maximum
    if not console.is_terminal:  # in a file no line need be cut
        console = console_module.Console(width=max(width, len(title)), height=25)
    if width <= console.width:
        console.print(table)
    else:
        print(title)
        print(_narrow(rows))


def _narrow(rows: list[tuple[str, ...]]) -> str:
    """The rows where the table is too wide: each name, whole, on a line of its own,
    over its figures; those that are 0 for every kernel are left out."""
    kept = [
        i
        for i, column in enumerate(_COLUMNS)
        if i > 0
        and (column == "in use" or any(row[i] not in ("0", "0 B") for row in rows))
    ]
    figures = align(
        [["", *(row[i] for i in kept)] for row in (_COLUMNS, *rows)]
    ).splitlines()
    names = [_COLUMNS[0], *(row[0] for row in rows)]
    return "\n".join(
        line
        for name, values in zip(names, figures, strict=True)
        for line in (name, values)
    )


def print_summary() -> None:
    """Prints who holds what, and held at most, on every device with a pool.

    One table for each device, a line for each kernel, the largest peak first; the
    figures are those of :func:`jax_bfc.memory_stats` and
    :func:`jax_bfc.kernel_stats`. With `rich <https://pypi.org/project/rich>`_
    where that is installed, else as plain text. Where a terminal is too narrow for
    the table, a kernel's figures stand under its name. Starts no JAX backend.
    """
    pools = _core.pools()
    if not pools:
        print("jax_bfc: no device has used scratch yet")
    rich = importlib.util.find_spec("rich") is not None
    for index, device in pools:
        title, rows = _title(device, _core.memory_stats(index)), _rows(index)
        if rich:
            _print_rich(title, rows)
        else:
            print(title)
            text = align([_COLUMNS, *rows])
            width = shutil.get_terminal_size().columns
            fits = not sys.stdout.isatty() or max(map(len, text.splitlines())) <= width
            print(text if fits else _narrow(rows))
