"""What is measured, and in which order: sides take turns, so drift hits all alike."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import _peers
from _peers import Side
from _workers import Worker, WorkerError

_GIB = 1 << 30
FIRST_ARENA_BYTES = 64 * _GIB
_FIRST_REQUEST_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effort:
    """How long it is measured."""

    rounds: int
    batch_ns: int
    samples: int
    sample_budget_ns: int
    replays: int
    processes: int  # for the first allocation

    @staticmethod
    def full() -> Effort:
        return Effort(
            rounds=61,
            batch_ns=3_000_000,
            samples=200_000,
            sample_budget_ns=3_000_000_000,
            replays=5,
            processes=7,
        )

    @staticmethod
    def quick() -> Effort:
        return Effort(
            rounds=9,
            batch_ns=1_500_000,
            samples=20_000,
            sample_budget_ns=400_000_000,
            replays=3,
            processes=3,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A workload of harness/workload.h, on so many threads."""

    workload: str
    n: int = 0
    threads: int = 1
    arena_bytes: int = 16 * _GIB
    only_bfc: bool = False
    replayed: bool = False

    @property
    def name(self) -> str:
        return f"{self.workload} {self.n:,}" if self.n else self.workload


@dataclasses.dataclass(kw_only=True)
class Timed:
    """What one side took in one case, by round; nanoseconds."""

    case: Case
    side: str
    ns_by_round: list[float]

    @property
    def ns(self) -> float:
        return statistics.median(self.ns_by_round)

    def ratios(self, other: Timed) -> list[float]:
        """How many times as long as `other`, in each round."""
        return [a / b for a, b in zip(self.ns_by_round, other.ns_by_round, strict=True)]

    def over(self, other: Timed) -> float:
        """How many times as long as `other`: the median over rounds, each by itself."""
        return statistics.median(self.ratios(other))


@dataclasses.dataclass(kw_only=True)
class Row(Timed):
    """The figures of one side in one case; nanoseconds."""

    clock: str
    allocate: dict[str, float]  # count, p50, p99, p99_99, max
    free: dict[str, float]
    least: dict[str, float] | None  # of several replays of the same operations


@dataclasses.dataclass(kw_only=True)
class First:
    """The first allocation in an arena of FIRST_ARENA_BYTES: medians over processes."""

    side: str
    ns: float
    host_bytes: float


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, and 95 % of where it falls when the values are drawn again."""
    draw = random.Random(0)
    medians = sorted(
        statistics.median(draw.choices(values, k=len(values))) for _ in range(2000)
    )
    return statistics.median(values), medians[49], medians[1949]


def groups() -> list[list[Case]]:
    """Cases to be compared with each other, and so measured in turns."""
    by_threads = [
        [Case(workload=workload, threads=threads) for threads in (1, 2, 4, 8)]
        for workload in ("same_size", "lifo")
    ]
    free_chunks = [
        [
            Case(workload=workload, n=n, arena_bytes=_GIB + n * 1_100_000)
            for n in (1_000, 10_000, 100_000)
        ]
        for workload in ("free_chunks", "free_chunks_varied")
    ]
    mixed = [
        Case(
            workload="mixed",
            n=n,
            arena_bytes=_GIB + n * 20_000,
            only_bfc=True,
            replayed=True,
        )
        for n in (100, 10_000, 1_000_000)
    ]
    return [*by_threads, [Case(workload="churn")], *free_chunks, mixed]


def measure_group(
    cases: Sequence[Case],
    *,
    sides: Iterable[Side],
    folder: Path,
    effort: Effort,
    say: Callable[[str], None],
) -> list[Row]:
    """Every side in every case, a process each, one batch of each a round."""
    with contextlib.ExitStack() as stack:
        cells: list[tuple[Case, Worker, str]] = []
        for case in cases:
            for side in sides:
                if case.only_bfc and not (side.is_bfc or side.label == _peers.EMPTY):
                    continue
                # The one that is not thread-safe.
                if case.threads > 1 and side.label == _peers.ARENA:
                    continue
                worker = stack.enter_context(
                    Worker(side, folder=folder, arena_bytes=case.arena_bytes)
                )
                try:
                    opened = worker.ask("open", case.workload, case.n, case.threads)
                    worker.ask("calibrate", 0, effort.batch_ns)
                except WorkerError as error:
                    say(f"left out: {case.name}: {error}")
                    continue
                read, step = opened["clock_ns"], opened["clock_step_ns"]
                clock = f"{read} ns to read, in steps of {step} ns"
                cells.append((case, worker, clock))
        ns: list[list[float]] = [[] for _ in cells]
        order = list(range(len(cells)))
        shuffle = random.Random(0)
        for _ in range(effort.rounds):
            shuffle.shuffle(order)
            for i in order:
                case, worker, _clock = cells[i]
                ns[i].append(_ns_per_pair(worker.ask("batch", 0), threads=case.threads))
        rows = []
        for i, (case, worker, clock) in enumerate(cells):
            replays = effort.replays if case.replayed else 0
            timed = worker.ask(
                "samples", 0, effort.samples, effort.sample_budget_ns, replays
            )
            rows.append(
                Row(
                    case=case,
                    side=worker.side.label,
                    ns_by_round=ns[i],
                    clock=clock,
                    allocate=timed["allocate"],
                    free=timed["free"],
                    least=timed.get("least"),
                )
            )
        return rows


def _ns_per_pair(batch: dict[str, Any], *, threads: int) -> float:
    """Wall time per pair and thread, for as many threads as there are cores.

    Where there are more threads than cores they take turns, and the wall time is
    divided by the number of turns, so that an allocator that scales perfectly has
    the same figure at any number of threads.
    """
    return (
        float(batch["wall_ns"])
        / float(batch["pairs"])
        * float(batch["cores"])
        / threads
    )


def measure_first(
    *, sides: Iterable[Side], folder: Path, effort: Effort
) -> list[First]:
    """The first allocation, in fresh processes, sides in turns."""
    arenas = [side for side in sides if side.is_bfc]
    answers: dict[str, list[dict[str, Any]]] = {side.label: [] for side in arenas}
    for _ in range(effort.processes):
        for side in arenas:
            with Worker(side, folder=folder, arena_bytes=FIRST_ARENA_BYTES) as worker:
                answers[side.label].append(worker.ask("first", _FIRST_REQUEST_BYTES))
    return [
        First(
            side=label,
            ns=statistics.median(answer["ns"] for answer in each),
            host_bytes=statistics.median(answer["host_bytes"] for answer in each),
        )
        for label, each in answers.items()
    ]
