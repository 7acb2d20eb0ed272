"""How gpu.py and graphs.py begin and end: options, the build, bars, the exit status."""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import time
from collections.abc import Callable, Set
from pathlib import Path

import _gpu_build
import _report
from _gpu_measure import Results, as_json
from _peers import Side


def add_options(parser: argparse.ArgumentParser, *, timeout: int) -> None:
    """Those that both have; run() and build() want them."""
    add = parser.add_argument
    add(
        "--build-folder",
        type=Path,
        default=Path(__file__).resolve().parent / "build" / "gpu",
        metavar="FOLDER",
        help="default: benchmarks/build/gpu, for gpu.py and graphs.py alike",
    )
    add("--json", type=Path, metavar="FILE", help="also write all of it there")
    add(
        "--timeout",
        type=float,
        default=timeout,
        metavar="SECONDS",
        help=f"after which it ends and shows where it hung (default: {timeout})",
    )


def run(options: argparse.Namespace, measure: Callable[[Results], None]) -> int:
    """Measures and prints the bars. The exit status is 1 where something failed.

    Sets the environment: JAX must not have been imported before.
    """
    faulthandler.enable()
    faulthandler.dump_traceback_later(options.timeout, exit=True)
    # Room for the others.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.4")
    results = Results()
    begin = time.monotonic()
    measure(results)
    _report.print_bars(results.bars)
    missed = sum(not bar.met for bar in results.bars)
    print(
        f"{len(results.bars) - missed} bars met, {missed} missed; "
        f"{time.monotonic() - begin:.0f} s with building"
    )
    for failure in results.failures:
        print(f"FAILED: {failure}")
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(results), indent=2) + "\n")
    return 1 if results.failures else 0


def build(
    program: str,
    options: argparse.Namespace,
    *,
    rounds: int,
    peers: Set[str] = frozenset(),
    wheels: Path | None = None,
) -> tuple[Path, dict[Path, list[Side]]]:
    """What _gpu_build.build() gives; then prints on what is measured.

    Ends `program` where JAX has no GPU.
    """
    # Not before run() has set the environment.
    import jax

    import jax_bfc

    if jax.default_backend() != "gpu":
        raise SystemExit(
            f"{program}: JAX runs on {jax.default_backend()!r} here; a GPU is wanted, "
            "and jax[cuda13] or jax[cuda12]"
        )
    _report.say("building")
    built = _gpu_build.build(
        folder=options.build_folder,
        definitions={
            "BENCH_XLA_INCLUDE_DIR": jax.ffi.include_dir(),
            "jax_bfc_DIR": jax_bfc.cmake_dir(),
        },
        wanted=peers,
        wheels=wheels,
        say=_report.say,
    )
    print(
        f"{jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} cores, "
        f"jax {jax.__version__}, jax_bfc {jax_bfc.__version__}, {rounds} rounds"
    )
    return built
