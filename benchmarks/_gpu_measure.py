"""How gpu.py measures: turns, rows, and what went wrong."""

from __future__ import annotations

import dataclasses
import random
import statistics
import traceback
from collections.abc import Callable, Iterable, Sequence

import _measure
import _report
from _bars import Bar
from _measure import Timed
from _report import say
from _workers import WorkerError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effort:
    """How long it is measured."""

    rounds: int
    samples: int  # in a round, each
    sample_ns: float
    thread_ns: float  # one round of threads
    growths: int
    steps: int
    layers: int

    @staticmethod
    def full() -> Effort:
        return Effort(
            rounds=30,
            samples=11,
            sample_ns=150_000,
            thread_ns=3e6,
            growths=30,
            steps=150,
            layers=48,
        )

    @staticmethod
    def quick() -> Effort:
        return Effort(
            rounds=7,
            samples=5,
            sample_ns=60_000,
            thread_ns=1e6,
            growths=20,
            steps=30,
            layers=12,
        )


@dataclasses.dataclass(kw_only=True, eq=False)
class Row(Timed):
    """The medians of each round, and all the samples that they are of."""

    samples: list[float] = dataclasses.field(default_factory=list)

    @property
    def p99(self) -> float:
        ordered = sorted(self.samples)
        return ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]


# A row, and what measures it once more: samples in ns.
Cell = tuple[Row, Callable[[], list[float]]]


@dataclasses.dataclass(kw_only=True)
class Results:
    """What came of the sections so far."""

    rows: dict[str, list[Row]] = dataclasses.field(default_factory=dict)
    bars: list[Bar] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)
    ended: set[str] = dataclasses.field(default_factory=set)  # workers

    def fail(self, what: str, error: BaseException) -> None:
        """Says it, and lets the rest go on."""
        text = f"{what}: {type(error).__name__}: {error}"
        say(f"FAILED: {text}")
        self.failures.append(text)

    def attempt(self, what: str, section: Callable[[], None]) -> None:
        """Runs a section."""
        say(f"measuring {what}")
        try:
            section()
        except Exception as error:
            traceback.print_exc()
            self.fail(what, error)

    def add_bar(
        self,
        name: str,
        limit: float,
        measured: float | None,
        unit: str,
        *,
        at_least: bool = False,
    ) -> None:
        """None where there is no figure, such as of a peer that is not here."""
        if measured is not None:
            self.bars.append(
                Bar(
                    name=name,
                    limit=limit,
                    measured=measured,
                    unit=unit,
                    at_least=at_least,
                )
            )


def take_turns(
    cells: Iterable[Cell], *, rounds: int, results: Results, seed: int = 0
) -> list[Row]:
    """Every cell once a round, in random order. One that fails is left out."""
    alive = [cell for cell in cells if cell[0].side not in results.ended]
    rows = [row for row, _ in alive]
    shuffle = random.Random(seed)
    for _ in range(rounds):
        shuffle.shuffle(alive)
        for cell in list(alive):
            row, measure = cell
            try:
                samples = measure()
            except Exception as error:
                if row.side not in results.ended:
                    results.fail(f"{row.side}, {row.case.name}", error)
                if isinstance(error, WorkerError):
                    results.ended.add(row.side)
                alive.remove(cell)
                rows.remove(row)
                continue
            row.ns_by_round.append(statistics.median(samples))
            row.samples += samples
    return rows


def in_order(rows: Sequence[Row], sides: Sequence[str]) -> list[Row]:
    """By case as they come, then by side as in `sides`."""
    place = {side: i for i, side in enumerate(sides)}
    names = list(dict.fromkeys(row.case.name for row in rows))
    return sorted(
        rows,
        key=lambda row: (
            names.index(row.case.name),
            row.case.threads,
            place.get(row.side, len(place)),
        ),
    )


def find(rows: Iterable[Row], side: str, workload: str, threads: int = 1) -> Row | None:
    for row in rows:
        if (row.side, row.case.workload, row.case.threads) == (side, workload, threads):
            return row
    return None


def over(row: Row | None, other: Row | None) -> float | None:
    return None if row is None or other is None else row.over(other)


def print_rows(
    title: str, rows: Sequence[Row], *, reference: str, scale: float = 1, unit: str
) -> None:
    """`reference`: the side that the ratios are to. Times are divided by `scale`."""
    body = []
    for row in rows:
        base = find(rows, reference, row.case.workload, row.case.threads)
        ratio, low, high = ("-", "-", "-")
        if base is not None:
            figures = _measure.interval(row.ratios(base))
            ratio, low, high = (f"{figure:,.3g}" for figure in figures)
        body.append(
            (
                row.case.name,
                str(row.case.threads),
                row.side,
                f"{row.ns / scale:,.1f}",
                f"{row.p99 / scale:,.1f}",
                ratio,
                f"{low} to {high}",
            )
        )
    header = (
        "workload",
        "threads",
        "side",
        unit,
        "p99",
        f"x {reference}",
        "95 % interval",
    )
    _report.print_table(title, header, body)


def as_json(results: Results) -> dict[str, object]:
    return {
        "sections": {
            name: [
                {
                    "workload": row.case.workload,
                    "n": row.case.n,
                    "threads": row.case.threads,
                    "side": row.side,
                    "ns": row.ns,
                    "p99_ns": row.p99,
                    "ns_by_round": row.ns_by_round,
                }
                for row in rows
            ]
            for name, rows in results.rows.items()
        },
        "bars": [bar.as_json() for bar in results.bars],
        "failures": results.failures,
    }
