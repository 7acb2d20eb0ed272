"""Compares ways to have scratch inside CUDA graphs, and outside of them, in one run.

`python benchmarks/graphs.py`. Handlers that are marked for CUDA graphs and handlers
that are not share a process, since XLA captures nothing of a program that consists of
the latter and single products; so the sides take turns.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import _gpu_run
import _measure
from _gpu_example import NAME, DecodeLoop
from _gpu_measure import Cell, Results, Row, find, print_rows, take_turns
from _measure import Case
from _report import say

_MIB = 1 << 20

_OURS = "jax_bfc in a graph"
_OURS_OUTSIDE = "jax_bfc, no graph"
_XLA_OUTSIDE = "XLA scratch, no graph"
_ASYNC_OUTSIDE = "cudaMallocAsync, no graph"
_OUTPUT = "extra XLA output in a graph"
_FIXED = "one fixed buffer in a graph"
_XLA = "XLA scratch in a graph (corrupts)"
# What it is called in gpu/steps.cc.
_SOURCES = {
    _OURS: "jax_bfc_graph",
    _OURS_OUTSIDE: "jax_bfc",
    _XLA_OUTSIDE: "xla",
    _ASYNC_OUTSIDE: "malloc_async",
    _OUTPUT: "output_graph",
    _FIXED: "fixed_graph",
    _XLA: "xla_graph",
}
# And in examples/transformer.
_EXAMPLE_SOURCES = {
    _OURS: "bfc_graph",
    _OURS_OUTSIDE: "bfc",
    _XLA_OUTSIDE: "xla",
    _ASYNC_OUTSIDE: "async",
    _OUTPUT: "output_graph",
}
_LEAST_FASTER = 2.5  # than XLA scratch without a graph
_MOST_OVER_FIXED = 1.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """Layers, each a custom call with scratch and a product."""

    name: str
    batch: int
    width: int
    layers: int
    calls: int  # to a sample, each on the result of the one before
    samples: int  # in a round
    scratch_bytes: tuple[int, ...]  # of the layers, in turn

    def bytes_of(self, layer: int) -> int:
        return self.scratch_bytes[layer % len(self.scratch_bytes)]

    @property
    def most_bytes(self) -> int:
        return max(self.scratch_bytes)


_PROGRAMS = (
    Program(
        name="48 layers",
        batch=8,
        width=1024,
        layers=48,
        calls=1,
        samples=9,
        scratch_bytes=(4 * _MIB,),
    ),
    # As a model that makes one token after another.
    Program(
        name="decoding, a token",
        batch=4,
        width=512,
        layers=24,
        calls=8,
        samples=3,
        scratch_bytes=(_MIB // 4, _MIB, _MIB // 2, 2 * _MIB),
    ),
)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--rounds", type=int, default=100, help="each side once a round (default: 100)")
    add("--ours", action="store_true", help="jax_bfc and the fixed buffer alone")
    _gpu_run.add_options(parser, timeout=240)
    options = parser.parse_args()
    if options.rounds < 30:
        parser.error(f"--rounds {options.rounds}: at least 30")
    return options


class _Sides:
    """A program with its scratch from each source; they share weights and input."""

    def __init__(self, program: Program, library: Any) -> None:
        # Not before _gpu_run.run() has set the environment.
        import jax
        import jax.numpy as jnp
        import numpy as np

        self._program = program
        self._library = library
        self._jax: Any = jax
        random = np.random.default_rng(0)
        shape = (program.batch, program.width)
        self._x = jnp.asarray(random.standard_normal(shape), jnp.float32)
        self._weights = jnp.asarray(
            random.standard_normal((program.width, program.width))
            / np.sqrt(program.width),
            jnp.float32,
        )
        self._steps: dict[str, Callable[[Any, Any], Any]] = {}
        self._expected: Any = None

    def add(self, label: str, results: Results) -> None:
        """Compiles it, and checks that it is what its name says."""
        import numpy as np

        step = self._jax.jit(functools.partial(self._layers, _SOURCES[label]))
        try:
            got = np.asarray(step(self._x, self._weights))
            if self._expected is None:
                self._expected = got
            # Loose: the products may be rounded as TensorFloat-32. The one that
            # corrupts may have spoilt the weights by now.
            if label != _XLA:
                np.testing.assert_allclose(got, self._expected, rtol=0.05, atol=0.05)
            self._check_calls(label, step)
        except Exception as error:
            results.fail(f"{label}, {self._program.name}", error)
            return
        self._steps[label] = step

    def _layers(self, source: str, x: Any, weights: Any) -> Any:
        jax, program = self._jax, self._program
        for layer in range(program.layers):
            nbytes = program.bytes_of(layer)
            outputs = [jax.ShapeDtypeStruct(x.shape, x.dtype)]
            if source.startswith("output"):
                outputs.append(jax.ShapeDtypeStruct((nbytes,), jax.numpy.uint8))
            call = jax.ffi.ffi_call(f"jax_bfc_benchmark_gpu_step_{source}", outputs)
            x = call(x, bytes=nbytes)[0] @ weights
        return x

    def _check_calls(self, label: str, step: Callable[[Any, Any], Any]) -> None:
        """A graph is replayed without a handler being called; others call each."""
        # Captured for the addresses that it runs with.
        for _ in range(10):
            self._run(step)
        before = self._library.gpu_step_calls()
        self._run(step)
        called = self._library.gpu_step_calls() - before
        all_calls = self._program.layers * self._program.calls
        if _SOURCES[label].endswith("graph"):
            # Some, where a buffer has moved once more.
            as_named = called <= all_calls // 20
        else:
            as_named = called == all_calls
        if not as_named:
            raise RuntimeError(
                f"{called} of {all_calls} handlers were called in a sample: it does "
                "not run as its name says"
            )

    def _run(self, step: Callable[[Any, Any], Any]) -> None:
        x: Any = self._x
        for _ in range(self._program.calls):
            x = step(x, self._weights)
        x.block_until_ready()

    def _sample(self, step: Callable[[Any, Any], Any]) -> list[float]:
        """ns of a call, some times, after one that is not counted."""
        samples = []
        for _ in range(1 + self._program.samples):
            begin = time.perf_counter_ns()
            self._run(step)
            taken = time.perf_counter_ns() - begin
            samples.append(taken / self._program.calls)
        return samples[1:]

    def cells(self, labels: list[str]) -> list[Cell]:
        return [
            (
                Row(case=Case(workload=self._program.name), side=label, ns_by_round=[]),
                functools.partial(self._sample, self._steps[label]),
            )
            for label in labels
            if label in self._steps
        ]


def _print(title: str, rows: list[Row], results: Results) -> None:
    results.rows[title] = rows
    print_rows(title, rows, reference=_OURS, scale=1e3, unit="us")


def _add_bars(
    program: str, rows: list[Row], others: list[str], results: Results
) -> None:
    ours = find(rows, _OURS, program)
    for other in others:
        is_peer = other != _FIXED
        row = find(rows, other, program)
        if ours is None or row is None:
            results.fail(program, RuntimeError(f"no ratio to {other}"))
            continue
        ratios = row.ratios(ours) if is_peer else ours.ratios(row)
        median, low, high = _measure.interval(ratios)
        name = f"{other} over {_OURS}" if is_peer else f"{_OURS} over {other}"
        print(
            f"{program}: {name}: {median:.3f} ({low:.3f} to {high:.3f}), "
            f"{len(ratios)} pairs; medians {statistics.median(row.samples) / 1e3:,.1f} "
            f"and {statistics.median(ours.samples) / 1e3:,.1f} us"
        )
        results.add_bar(
            f"{program}: {name}",
            _LEAST_FASTER if is_peer else _MOST_OVER_FIXED,
            median,
            "x",
            at_least=is_peer,
        )


def _measure_example(options: argparse.Namespace, results: Results) -> None:
    loop = DecodeLoop()
    for label, source in _EXAMPLE_SOURCES.items():
        loop.add(label, source, results)
    rows = take_turns(loop.cells(), rounds=options.rounds, results=results)
    _print(NAME, rows, results)
    _add_bars(NAME, rows, [_XLA_OUTSIDE], results)


def _run(options: argparse.Namespace, results: Results) -> None:
    # Not before _gpu_run.run() has set the environment.
    import jax

    import jax_bfc

    path, _ = _gpu_run.build("graphs.py", options, rounds=options.rounds)
    library = ctypes.CDLL(str(path))
    library.gpu_step_calls.restype = ctypes.c_int64
    for label, source in _SOURCES.items():
        name = f"gpu_step_{source}"
        capsule = jax.ffi.pycapsule(getattr(library, name))
        ours = label in (_OURS, _OURS_OUTSIDE)
        register: Any = (jax_bfc if ours else jax.ffi).register_ffi_target
        register(f"jax_bfc_benchmark_{name}", capsule, platform="CUDA")
    everyone = []
    safe = [label for label in _SOURCES if label != _XLA]
    if options.ours:
        safe = [_OURS, _OURS_OUTSIDE, _FIXED]
    for program in _PROGRAMS:
        say(f"compiling {program.name}")
        before = jax_bfc.memory_stats()["pinned_bytes"]
        sides = _Sides(program, library)
        for label in safe:
            sides.add(label, results)
        everyone.append((program, sides))
        pinned = jax_bfc.memory_stats()["pinned_bytes"] - before
        wanted = sum(program.bytes_of(i) for i in range(program.layers))
        print(f"{program.name}: {pinned / _MIB:,.1f} MiB pinned by graphs")
        if pinned != wanted:
            error = RuntimeError(f"{pinned:,} bytes pinned, {wanted:,} expected")
            results.fail(f"{_OURS}, {program.name}", error)
    for program, sides in everyone:
        say(f"measuring {program.name}")
        rows = take_turns(sides.cells(safe), rounds=options.rounds, results=results)
        _print(f"{program.name}, scratch of {program.most_bytes:,} B", rows, results)
        if not options.ours:
            _add_bars(program.name, rows, [_XLA_OUTSIDE, _FIXED], results)
    if options.ours:
        return
    results.attempt("the example", lambda: _measure_example(options, results))
    # Last, since it writes over what is anybody's: results mean nothing any more.
    for program, sides in everyone:
        sides.add(_XLA, results)
        cells = sides.cells([_OURS, _XLA])
        rows = take_turns(cells, rounds=max(30, options.rounds // 3), results=results)
        _print(f"{program.name}, beside the one that corrupts", rows, results)


def main() -> int:
    options = _arguments()
    return _gpu_run.run(
        options,
        lambda results: results.attempt("graphs", lambda: _run(options, results)),
    )


if __name__ == "__main__":
    sys.exit(main())
