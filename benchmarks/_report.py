"""Tables and JSON of what was measured."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import _peers
from _bars import Bar
from _measure import FIRST_ARENA_BYTES, First, Row

_LEAST_SAMPLES = 10_000  # that p99.99 needs to mean anything


def say(text: str) -> None:
    """How far it is, beside the tables."""
    print(text, file=sys.stderr, flush=True)


def _figure(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _tail(samples: dict[str, float]) -> list[str]:
    """p50, p99, p99.99 and max."""
    enough = samples["count"] >= _LEAST_SAMPLES
    return [
        _figure(samples["p50"]),
        _figure(samples["p99"]),
        _figure(samples["p99_99"]) if enough else "-",
        _figure(samples["max"]),
    ]


def _ratio(row: Row, rows: Iterable[Row], side: str) -> str:
    for other in rows:
        if other.side == side and other.case == row.case:
            ratio = row.over(other)
            return (
                f"{ratio:.2g}"
                if ratio < 0.1
                else _figure(ratio)
                if ratio >= 10
                else f"{ratio:.2f}"
            )
    return "-"


def print_table(
    title: str, header: Sequence[str], body: Iterable[Sequence[str]]
) -> None:
    """With rich where it is installed, else plainly; figures to the right."""
    rows = list(body)
    left = [
        all(not any(c.isdigit() for c in row[i]) or " " in row[i] for row in rows)
        for i in range(len(header))
    ]
    left[0] = True
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [
            max(len(row[i]) for row in [header, *rows]) for i in range(len(header))
        ]
        print(f"\n{title}")
        for row in [header, *rows]:
            cells = (
                c.ljust(w) if is_left else c.rjust(w)
                for c, w, is_left in zip(row, widths, left, strict=True)
            )
            print("  ".join(cells).rstrip())
        return
    table = Table(
        title=title, title_justify="left", title_style="bold", header_style=""
    )
    for name, is_left in zip(header, left, strict=True):
        table.add_column(name, justify="left" if is_left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=None if Console().is_terminal else 160).print(table)


def print_rows(rows: Sequence[Row]) -> None:
    """A table for each workload: batches first, then single allocations."""
    header = (
        "workload",
        "threads",
        "allocator",
        "ns per pair",
        "p50",
        "p99",
        "p99.99",
        "max",
        "x TensorFlow",
        "x pool",
    )
    for workload in dict.fromkeys(row.case.workload for row in rows):
        chosen = [row for row in rows if row.case.workload == workload]
        body = [
            (
                row.case.name,
                str(row.case.threads),
                row.side,
                _figure(row.ns),
                *_tail(row.allocate),
                _ratio(row, rows, _peers.TENSORFLOW),
                _ratio(row, rows, _peers.POOL),
            )
            for row in chosen
        ]
        print_table(workload, header, body)
    replayed = [(row, row.least) for row in rows if row.least is not None]
    if replayed:
        print_table(
            "mixed, the least of several replays: less of what the machine adds",
            ("workload", "allocator", "p50", "p99", "p99.99", "max"),
            [(row.case.name, row.side, *_tail(least)) for row, least in replayed],
        )


def print_first(firsts: Iterable[First]) -> None:
    print_table(
        f"first allocation, an arena of {FIRST_ARENA_BYTES >> 30} GiB made for it",
        ("allocator", "us", "KiB of host memory"),
        [
            (first.side, f"{first.ns / 1e3:,.1f}", f"{first.host_bytes / 1024:,.0f}")
            for first in firsts
        ],
    )


def print_bars(bars: Iterable[Bar]) -> None:
    print_table(
        "bars",
        ("bar", "wanted", "measured", "met"),
        [
            (bar.name, bar.limit_text, bar.measured_text, "yes" if bar.met else "NO")
            for bar in bars
        ],
    )


def as_json(
    rows: Iterable[Row], firsts: Iterable[First], bars: Iterable[Bar]
) -> dict[str, Any]:
    """All of it, for a file."""
    return {
        "rows": [
            {
                "workload": row.case.workload,
                "n": row.case.n,
                "threads": row.case.threads,
                "allocator": row.side,
                "ns_per_pair": row.ns,
                "ns_per_pair_quartiles": statistics.quantiles(row.ns_by_round, n=4),
                "clock": row.clock,
                "allocate": row.allocate,
                "free": row.free,
                "least_of_replays": row.least,
            }
            for row in rows
        ],
        "first_allocation": [
            {"allocator": first.side, "ns": first.ns, "host_bytes": first.host_bytes}
            for first in firsts
        ],
        "bars": [bar.as_json() for bar in bars],
    }
