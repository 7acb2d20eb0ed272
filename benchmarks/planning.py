"""Compares the offline placement of `plan` with omnimalloc's allocators.

`python benchmarks/planning.py [TRACE...]`; README.md says what is measured.

All sides get the same sizes: those of the trace rounded up to whole quanta of 256
bytes, and 256 for 0, as our planner would round them itself. Peak live, over which
the ratios are, is that of the trace as it is.
"""

from __future__ import annotations

import argparse
import bisect
import dataclasses
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import _report
import numpy as np
import numpy.typing as npt

from jax_bfc import _core, _trace

_TRACES = sorted(
    (Path(__file__).resolve().parents[1] / "tests" / "traces").glob("*.csv.gz")
)
_QUANTUM = 256
_GIB = 1 << 30
# A search that is given more time may ask for all memory there is.
_MEMORY_BYTES = 8 * _GIB
# The bars, on the shared traces.
_MOST_RATIO = 1.01
_MOST_SECONDS = 60.0

_Place = Callable[[], npt.NDArray[np.uint64]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """Ours, or one of omnimalloc's allocators; a search has so many seconds."""

    allocator: str | None = None
    budget: float | None = None

    @property
    def name(self) -> str:
        if self.allocator is None:
            return "jax_bfc"
        budget = "" if self.budget is None else f", {self.budget:g} s"
        return f"omnimalloc {self.allocator}{budget}"

    def make(self) -> Any:
        """The allocator. Raises ImportError where it needs what is not there."""
        base = importlib.import_module("omnimalloc.allocators").BaseAllocator
        options = {} if self.budget is None else {"timeout": self.budget}
        return base.get(self.allocator)(**options)


_OURS = Side()
# Its default is 3 s. Supermalloc depends most on how long it searches.
_PEERS = [
    *(
        Side(allocator=name)
        for name in ("greedy_by_size", "greedy_by_all", "best_fit", "omni")
    ),
    *(Side(allocator="supermalloc", budget=seconds) for seconds in (3.0, 5.0, 20.0)),
    *(
        Side(allocator=name, budget=20.0)
        for name in (
            "telamalloc",
            "hill_climb",
            "simulated_annealing",
            "tabu_search",
            "genetic",
            "minimalloc",
        )
    ),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """A trace with its sizes rounded."""

    name: str
    is_allocate: npt.NDArray[np.uint8]
    ids: npt.NDArray[np.uint32]
    bytes: npt.NDArray[np.uint64]  # by event, rounded
    peak_live_bytes: int  # of the trace as it is

    @property
    def sizes(self) -> npt.NDArray[np.uint64]:
        """By allocation."""
        return np.compress(self.is_allocate == 1, self.bytes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """How one side placed one trace, or why it did not."""

    trace: str
    side: str
    allocations: int
    peak_live_bytes: int
    placed_bytes: int | None = None
    seconds: float | None = None
    why_not: str | None = None

    @property
    def ratio(self) -> float | None:
        if self.placed_bytes is None:
            return None
        return self.placed_bytes / max(1, self.peak_live_bytes)


def _read(path: Path) -> Problem:
    trace = _trace.read_trace(path)
    asked = trace.bytes.astype(np.int64)
    rounded = np.maximum(1, -(-asked // _QUANTUM)) * _QUANTUM
    return Problem(
        name=path.name.removesuffix(".gz").removesuffix(".csv"),
        is_allocate=trace.is_allocate,
        ids=trace.ids,
        bytes=rounded.astype(np.uint64),
        peak_live_bytes=int(
            np.cumsum(np.where(trace.is_allocate == 1, asked, -asked)).max()
        ),
    )


def _placer(side: Side, problem: Problem) -> _Place:
    """What is timed: from the problem in the side's own form to a placement."""
    if side.allocator is None:

        def place() -> npt.NDArray[np.uint64]:
            plan = _core.plan(problem.is_allocate, problem.ids, problem.bytes)
            return np.frombuffer(plan["offsets"], np.uint64)

        return place

    omnimalloc: Any = importlib.import_module("omnimalloc")
    allocator = side.make()
    # Time passes with allocations: from its own to before the first that follows
    # its free.
    sizes = problem.sizes.tolist()
    ends = np.full(len(sizes), len(sizes))
    frees = problem.is_allocate == 0
    ends[problem.ids[frees]] = np.cumsum(problem.is_allocate, dtype=np.int64)[frees]
    wanted = [
        omnimalloc.Allocation(id=i, size=size, start=i, end=end)
        for i, (size, end) in enumerate(zip(sizes, ends.tolist(), strict=True))
    ]

    def place_theirs() -> npt.NDArray[np.uint64]:
        placed = omnimalloc.allocate(wanted, allocator)
        return np.array([one.offset for one in placed], np.uint64)

    return place_theirs


def _work(connection: Connection, side: Side, path: Path) -> None:
    """In a process of its own: says that it begins, then how it went."""
    try:
        place = _placer(side, _read(path))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
        connection.send(None)
        begin = time.perf_counter()
        offsets = place()
        connection.send((time.perf_counter() - begin, offsets))
    except MemoryError:
        connection.send(f"out of memory at {_MEMORY_BYTES // _GIB} GiB")
    except Exception as error:
        connection.send(f"failed: {type(error).__name__}: {error}".splitlines()[0])


def _ask(
    side: Side, path: Path, *, timeout: float
) -> tuple[float, npt.NDArray[np.uint64]] | str:
    """Seconds and offsets, or why there are none."""
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(its, side, path), daemon=True)
    process.start()
    its.close()
    try:
        answer: Any = ours.recv()
        if answer is None:
            if not ours.poll(timeout):
                return f"not done in {timeout:g} s"
            answer = ours.recv()
        assert isinstance(answer, (tuple, str))
        return answer
    except EOFError:
        process.join()
        code = process.exitcode or 0
        return f"failed: {signal.Signals(-code).name if code < 0 else f'exit {code}'}"
    finally:
        process.kill()
        process.join()
        ours.close()


def _overlap(problem: Problem, offsets: npt.NDArray[np.uint64]) -> str | None:
    """The first two allocations that share a byte while both are live.

    Goes through the events with the live ranges in order of address. Knows
    nothing of how they were placed.
    """
    starts: list[int] = []
    live: list[tuple[int, int]] = []  # start and end, in the same order
    place = offsets.tolist()
    events = zip(
        problem.is_allocate.tolist(),
        problem.ids.tolist(),
        problem.bytes.tolist(),
        strict=True,
    )
    for is_allocate, number, size in events:
        begin, end = place[number], place[number] + size
        at = bisect.bisect_left(starts, begin)
        if not is_allocate:
            del starts[at], live[at]
            continue
        for other in live[max(0, at - 1) : at + 1]:
            if other[0] < end and begin < other[1]:
                return f"{number} at [{begin}, {end}) and one at {other}"
        starts.insert(at, begin)
        live.insert(at, (begin, end))
    return None


def _measure(side: Side, problem: Problem, path: Path, *, timeout: float) -> Row:
    sizes = problem.sizes
    row = Row(
        trace=problem.name,
        side=side.name,
        allocations=len(sizes),
        peak_live_bytes=problem.peak_live_bytes,
    )
    answer = _ask(side, path, timeout=timeout)
    if isinstance(answer, str):
        return dataclasses.replace(row, why_not=answer)
    seconds, offsets = answer
    if len(offsets) != len(sizes):
        return dataclasses.replace(row, why_not=f"WRONG: {len(offsets):,} placed")
    if shared := _overlap(problem, offsets):
        return dataclasses.replace(row, why_not=f"WRONG: {shared}")
    return dataclasses.replace(
        row, placed_bytes=int((offsets + sizes).max()), seconds=seconds
    )


def _find_peers() -> tuple[list[Side], list[str]]:
    """Those that are here, and a line for each that is not."""
    try:
        importlib.import_module("omnimalloc")
    except ImportError:
        return [], ["omnimalloc: pip install omnimalloc; jax_bfc alone was measured"]
    peers, missing = [], []
    for side in _PEERS:
        try:
            side.make()
        except ImportError as error:
            missing.append(f"{side.name}: {str(error).splitlines()[0]}")
        else:
            peers.append(side)
    return peers, missing


def _print(rows: Sequence[Row]) -> None:
    _report.print_table(
        "offline placement",
        ("trace", "side", "allocations", "peak live", "placed", "ratio", "seconds"),
        [
            (
                row.trace,
                row.side,
                f"{row.allocations:,}",
                f"{row.peak_live_bytes:,}",
                row.why_not or f"{row.placed_bytes:,}",
                "-" if row.ratio is None else f"{row.ratio:.4f}",
                "-" if row.seconds is None else f"{row.seconds:.2f}",
            )
            for row in rows
        ],
    )


def _print_bars(rows: Sequence[Row]) -> None:
    """Of ours; what was not placed meets none."""

    def bar(trace: str, most: float, measured: float | None, unit: str) -> list[str]:
        met = measured is not None and measured <= most
        text = "-" if measured is None else f"{measured:.4f}{unit}"
        return [trace, f"at most {most:g}{unit}", text, "yes" if met else "NO"]

    _report.print_table(
        "bars",
        ("bar", "wanted", "measured", "met"),
        [
            line
            for row in rows
            for line in (
                bar(f"{row.trace}, placed over peak live", _MOST_RATIO, row.ratio, ""),
                bar(f"{row.trace}, time", _MOST_SECONDS, row.seconds, " s"),
            )
        ],
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("jax_bfc", "omnimalloc"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "traces",
        nargs="*",
        type=Path,
        default=_TRACES,
        metavar="TRACE",
        help="as `python -m jax_bfc plan` reads (default: those in tests/traces)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=_MOST_SECONDS,
        metavar="SECONDS",
        help="for each side and trace (default: %(default)g)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write it there")
    options = parser.parse_args()
    if not options.timeout > 0:
        parser.error(f"--timeout: {options.timeout:g} is not above 0")
    try:
        problems = {path: _read(path) for path in options.traces}
    except _trace.TraceError as error:
        parser.error(str(error))

    peers, missing = _find_peers()
    rows: list[Row] = []
    for path, problem in problems.items():
        for side in (_OURS, *peers):
            _report.say(f"placing {problem.name}: {side.name}")
            rows.append(_measure(side, problem, path, timeout=options.timeout))

    _print(rows)
    shared = {
        problems[path].name for path in options.traces if path.resolve() in _TRACES
    }
    if ours := [r for r in rows if r.trace in shared and r.side == _OURS.name]:
        _print_bars(ours)
    for line in missing:
        print(f"not found: {line}")
    versions = _versions()
    cores = len(os.sched_getaffinity(0))
    print(", ".join(f"{k} {v}" for k, v in versions.items()) + f", {cores} cores")
    if options.json is not None:
        written = {
            "versions": versions,
            "cores": cores,
            "rows": [{**dataclasses.asdict(row), "ratio": row.ratio} for row in rows],
        }
        options.json.write_text(json.dumps(written, indent=2) + "\n")
    if any(row.why_not and row.why_not.startswith("WRONG") for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
