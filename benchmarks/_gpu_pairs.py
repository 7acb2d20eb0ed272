"""Pairs of an allocation and its free: inside a handler, outside XLA, on threads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from _gpu_build import RMM_ARENA, RMM_POOL, TORCH
from _gpu_library import Library
from _gpu_measure import (
    Cell,
    Effort,
    Results,
    Row,
    find,
    in_order,
    over,
    print_rows,
    take_turns,
)
from _measure import Case
from _report import say
from _workers import Worker, WorkerError

OURS = "jax_bfc"
OURS_PLAIN = "jax_bfc, never in a graph"
XLA = "XLA's scratch"
CUDA_ASYNC = "cudaMallocAsync"
EMPTY = "empty loop"

# What it is called in gpu/pairs.cc, and whether XLA may put its handler into a
# graph.
_IN_HANDLER = {
    OURS: ("jax_bfc", True),
    OURS_PLAIN: ("jax_bfc", False),
    XLA: ("xla", False),
    CUDA_ASYNC: ("cuda_async", False),
    EMPTY: ("empty", False),
}
_FREE_CHUNKS = 10_000
_WORKLOADS = ("same_size", "lifo")
_HELD_WORKLOADS = ("free_chunks", "free_chunks_varied")
_PARTS = ("begin_call", "decode", "decode_and_pair")
# How many times as fast as XLA's scratch.
_OVER_XLA = {"same_size": 4, "lifo": 4, "free_chunks": 400}
_MOST_NS = {
    OURS: ("decoding and a pair, where a graph may capture them", 80),
    OURS_PLAIN: ("decoding and a pair, never in a graph", 40),
}
_THREADS = 8
_LEAST_SCALING = 6

# ns per pair of so many samples of so many pairs.
_Measure = Callable[[int, int], list[float]]


def _calibrated(
    measure: _Measure, *, samples: int, sample_ns: float
) -> Callable[[], list[float]]:
    """So many samples of about that long; how many pairs is found out at first."""
    pairs = 0

    def timed() -> list[float]:
        nonlocal pairs
        if pairs == 0:
            pairs = 16
            # The second time without what a short run makes of starting threads.
            for part in (4, 1):
                ns = max(0.1, min(measure(2, pairs)))
                pairs = max(4, min(200_000, round(sample_ns / part / ns)))
        return measure(samples, pairs)

    return timed


def _cell(case: Case, side: str, measure: _Measure, effort: Effort) -> Cell:
    timed = _calibrated(measure, samples=effort.samples, sample_ns=effort.sample_ns)
    return Row(case=case, side=side, ns_by_round=[]), timed


def _handler(library: Library, side: str, workload: str, graph: bool) -> _Measure:
    def measure(samples: int, pairs: int) -> list[float]:
        return library.in_handler(
            side, workload, samples=samples, pairs=pairs, graph=graph
        )

    return measure


def _peer(worker: Worker, workload: str) -> _Measure:
    def measure(samples: int, pairs: int) -> list[float]:
        return [float(ns) for ns in worker.ask("batch", workload, samples, pairs)["ns"]]

    return measure


def _ask_all(workers: Sequence[Worker], command: str, *, results: Results) -> None:
    for worker in workers:
        label = worker.side.label
        if label not in results.ended:
            try:
                worker.ask(command)
            except WorkerError as error:
                results.fail(f"{label}, free chunks", error)
                results.ended.add(label)


def measure_pairs(
    library: Library, workers: Sequence[Worker], *, effort: Effort, results: Results
) -> None:
    """Every side in every workload, and what our decoding costs."""
    rows: list[Row] = []
    for workloads, n in ((_WORKLOADS, 0), (_HELD_WORKLOADS, _FREE_CHUNKS)):
        if n > 0:
            _ask_all(workers, "hold", results=results)
        for workload in workloads:
            case = Case(workload=workload, n=n)
            cells = [
                _cell(case, label, _handler(library, side, workload, graph), effort)
                for label, (side, graph) in _IN_HANDLER.items()
            ]
            cells += [
                _cell(case, worker.side.label, _peer(worker, workload), effort)
                for worker in workers
            ]
            if workload == "same_size":
                cells += [
                    _cell(
                        Case(workload=part),
                        label,
                        _handler(library, part, workload, graph),
                        effort,
                    )
                    for part in _PARTS
                    for label, graph in ((OURS, True), (OURS_PLAIN, False))
                ]
            rows += take_turns(cells, rounds=effort.rounds, results=results)
        if n > 0:
            _ask_all(workers, "release", results=results)
    sides = [*_IN_HANDLER, *(worker.side.label for worker in workers)]
    pairs = [row for row in rows if row.case.workload not in _PARTS]
    parts = [row for row in rows if row.case.workload in _PARTS]
    results.rows["pairs"] = rows
    print_rows("pairs", in_order(pairs, sides), reference=OURS, unit="ns per pair")
    print_rows(
        "a handler's decoding of its jax_bfc::ScratchAllocator",
        in_order(parts, sides),
        reference=OURS,
        unit="ns per call",
    )
    _pair_bars(rows, results)


def _pair_bars(rows: Sequence[Row], results: Results) -> None:
    for workload, least in _OVER_XLA.items():
        ours = find(rows, OURS, workload)
        results.add_bar(
            f"{workload}: {XLA} over {OURS}",
            least,
            over(find(rows, XLA, workload), ours),
            "x",
            at_least=True,
        )
        for peer in (RMM_ARENA, RMM_POOL, TORCH, CUDA_ASYNC):
            results.add_bar(
                f"{workload}: {peer} over {OURS}",
                1,
                over(find(rows, peer, workload), ours),
                "x",
                at_least=True,
            )
    for side, (name, most) in _MOST_NS.items():
        row = find(rows, side, "decode_and_pair")
        results.add_bar(name, most, row.ns if row else None, "ns")


# ---------------------------------------------------------------------------
# Threads, with a stream each.


def measure_threads(
    library: Library,
    workers: Sequence[Worker],
    *,
    effort: Effort,
    cores: int,
    results: Results,
) -> None:
    """One thread and eight of each, in turns."""
    if cores < _THREADS:
        say(f"{cores} cores for {_THREADS} threads: they take turns")
    clocks: dict[str, Callable[[str, int, int], float]] = {OURS: library.threads}
    for worker in workers:
        clocks[worker.side.label] = functools.partial(_worker_threads, worker)
    rows: list[Row] = []
    for workload in _WORKLOADS:
        cells: list[Cell] = []
        for label, clock in clocks.items():
            for count in (1, _THREADS):
                row = Row(
                    case=Case(workload=workload, threads=count),
                    side=label,
                    ns_by_round=[],
                )
                once = _once(clock, workload, count)
                timed = _calibrated(once, samples=1, sample_ns=effort.thread_ns)
                cells.append((row, timed))
        rows += take_turns(cells, rounds=effort.rounds, results=results)
    results.rows["threads"] = rows
    print_rows(
        f"threads with a stream each, {cores} cores",
        in_order(rows, list(clocks)),
        reference=OURS,
        unit="wall ns per pair and thread",
    )
    for workload in _WORKLOADS:
        slowdown = over(
            find(rows, OURS, workload, _THREADS), find(rows, OURS, workload, 1)
        )
        results.add_bar(
            f"{workload}: throughput of {_THREADS} threads over one",
            _LEAST_SCALING,
            _THREADS / slowdown if slowdown else None,
            "x",
            at_least=True,
        )


def _once(
    clock: Callable[[str, int, int], float], workload: str, count: int
) -> _Measure:
    def measure(_samples: int, pairs: int) -> list[float]:
        return [clock(workload, count, pairs)]

    return measure


def _worker_threads(worker: Worker, workload: str, count: int, pairs: int) -> float:
    return float(worker.ask("threads", workload, count, pairs)["wall_ns"])
