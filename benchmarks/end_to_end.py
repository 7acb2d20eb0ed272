"""Times jitted custom calls by where their scratch comes from, in one run.

`python benchmarks/end_to_end.py`; README.md says what is measured.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import functools
import json
import random
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _measure
import _report
import _workers
import jax
import jax.numpy as jnp

import jax_bfc

# Not annotated in every version of JAX.
_ffi: Any = jax.ffi
_Shape: Any = jax.ShapeDtypeStruct

_MIB = 1 << 20
_SCRATCH = "jax_bfc scratch"
_STATIC = "static, huge pages"
# What it is called in end_to_end.cc.
_SOURCES = {
    _SCRATCH: "scratch",
    "malloc in the handler": "malloc",
    "extra XLA output": "output",
    _STATIC: "static_huge",
    "static, malloc": "static",
}
# A sample is as many calls as take this long, so that the clock and the
# scheduler weigh little.
_SAMPLE_SECONDS = 0.004
# How many times as long the others are to take, and the most that scratch may
# take over the best static buffer.
_AT_LEAST = {"touch": 200.0, "write": 12.0}
_AT_MOST = 1.05


@dataclasses.dataclass(kw_only=True)
class Side:
    """One way to have scratch: a jitted call, and what it took by round."""

    name: str
    call: Callable[[], jax.Array]
    calls: int = 1
    seconds: list[float] = dataclasses.field(default_factory=list)
    faults: list[float] = dataclasses.field(default_factory=list)

    def run(self) -> float:
        """Seconds and page faults per call, after one that is not counted."""
        self.call().block_until_ready()
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        begin = time.perf_counter()
        for _ in range(self.calls):
            self.call().block_until_ready()
        seconds = (time.perf_counter() - begin) / self.calls
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        self.seconds.append(seconds)
        self.faults.append(faults / self.calls)
        return seconds

    def calibrate(self) -> None:
        """Sets the calls of a sample."""
        for _ in range(3):
            seconds = self.run()
        self.calls = max(1, round(_SAMPLE_SECONDS / seconds))
        self.seconds.clear()
        self.faults.clear()


def _verdict(median_meets: bool, interval_meets: bool) -> str:
    if interval_meets:
        return "yes"
    return "median only" if median_meets else "NO"


def _make_sides(work: str, library: ctypes.CDLL, nbytes: int) -> list[Side]:
    """The five handlers of one kind of work, registered and jitted."""
    sides = []
    for name, suffix in _SOURCES.items():
        target = f"jax_bfc_benchmark_{work}_{suffix}"
        handler = _ffi.pycapsule(getattr(library, f"{work}_{suffix}"))
        if name == _SCRATCH:
            jax_bfc.register_ffi_target(target, handler)
        else:
            jax.ffi.register_ffi_target(target, handler, platform="cpu")
        result = _Shape((1,), jnp.uint8)
        workspace = _Shape((nbytes,), jnp.uint8)
        # The workspace is no result of the program: XLA frees it at once.
        results = (result, workspace) if suffix == "output" else (result,)
        call = functools.partial(_ffi.ffi_call(target, results), bytes=nbytes)
        sides.append(Side(name=name, call=jax.jit(lambda call=call: call()[0])))
    return sides


def _report_work(work: str, sides: Sequence[Side]) -> list[dict[str, object]]:
    by_name = {side.name: side for side in sides}
    scratch = by_name[_SCRATCH]
    rows, bars, body = [], [], []
    for side in sides:
        ratios = [a / b for a, b in zip(side.seconds, scratch.seconds, strict=True)]
        ratio, low, high = _measure.interval(ratios)
        us = statistics.median(side.seconds) * 1e6
        faults = statistics.median(side.faults)
        body.append(
            (
                side.name,
                f"{us:,.1f}",
                f"{faults:,.1f}",
                f"{ratio:,.3g}",
                f"{low:,.3g} to {high:,.3g}",
            )
        )
        rows.append(
            {
                "work": work,
                "scratch": side.name,
                "us": us,
                "page_faults": faults,
                "over_scratch": [ratio, low, high],
            }
        )
        if side.name in ("malloc in the handler", "extra XLA output"):
            least = _AT_LEAST[work]
            met = _verdict(ratio >= least, low >= least)
            bars.append(
                (
                    f"{side.name} over {_SCRATCH}",
                    f"at least {least:g}",
                    f"{ratio:.3g}",
                    f"{low:.3g} to {high:.3g}",
                    met,
                )
            )
    over = [
        a / b for a, b in zip(scratch.seconds, by_name[_STATIC].seconds, strict=True)
    ]
    ratio, low, high = _measure.interval(over)
    met = _verdict(ratio <= _AT_MOST, high <= _AT_MOST)
    bars.append(
        (
            f"{_SCRATCH} over {_STATIC}",
            f"at most {_AT_MOST:g}",
            f"{ratio:.3f}",
            f"{low:.3f} to {high:.3f}",
            met,
        )
    )
    _report.print_table(
        f"{work}, {len(scratch.seconds)} rounds",
        ("scratch", "us per call", "page faults", "x jax_bfc", "95 % interval"),
        body,
    )
    _report.print_table(
        f"{work}: bars",
        ("bar", "ratio wanted", "measured", "95 % interval", "met"),
        bars,
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=60, help="at least 30 (default: 60)"
    )
    parser.add_argument("--mib", type=int, default=64, help="scratch (default: 64)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write it there")
    options = parser.parse_args()
    if options.rounds < 30:
        parser.error(f"--rounds: {options.rounds} is less than 30")

    folder = Path(__file__).resolve().parent / "build" / "end_to_end"
    _workers.build(
        folder=folder,
        definitions={
            "BENCH_END_TO_END": "ON",
            "BENCH_XLA_INCLUDE_DIR": jax.ffi.include_dir(),
            "jax_bfc_DIR": jax_bfc.cmake_dir(),
        },
    )
    library = ctypes.CDLL(str(folder / "end_to_end.so"))
    rows: list[dict[str, object]] = []
    for work in _AT_LEAST:
        sides = _make_sides(work, library, options.mib * _MIB)
        for side in sides:
            side.calibrate()
        order = list(sides)
        shuffle = random.Random(0)
        for _ in range(options.rounds):
            shuffle.shuffle(order)
            for side in order:
                side.run()
        rows += _report_work(work, sides)
    print(f"jax {jax.__version__}, {options.mib} MiB of scratch a call")
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
