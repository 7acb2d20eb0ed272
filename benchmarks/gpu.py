"""Compares jax_bfc with other allocators on a GPU, in one run.

`python benchmarks/gpu.py`; README.md says what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import sys
import time
from pathlib import Path

import _gpu_build
import _report
from _gpu_measure import Effort, Results, as_json, say
from _workers import Worker

_SECTIONS = ("pairs", "threads", "growth", "steps")
_GIB = 1 << 30
_PEER_BYTES = 3 * _GIB  # what RMM's pool and arena take


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="a third of the time, for a first look")
    add(
        "--sections",
        default=",".join(_SECTIONS),
        metavar="NAMES",
        help=f"some of {','.join(_SECTIONS)} (default: all)",
    )
    add(
        "--peers",
        default=",".join(_gpu_build.PEERS),
        metavar="NAMES",
        help=f"some of {','.join(_gpu_build.PEERS)}, or none (default: all found)",
    )
    wheels = os.environ.get("JAX_BFC_BENCHMARK_WHEELS")
    add(
        "--wheels",
        type=Path,
        default=Path(wheels) if wheels else None,
        metavar="FOLDER",
        help="wheels of librmm and rapids_logger, to be used where they are not "
        "installed (default: $JAX_BFC_BENCHMARK_WHEELS)",
    )
    add(
        "--build-folder",
        type=Path,
        default=Path(__file__).resolve().parent / "build" / "gpu",
        metavar="FOLDER",
        help="default: benchmarks/build/gpu",
    )
    add("--json", type=Path, metavar="FILE", help="also write all of it there")
    add(
        "--timeout",
        type=float,
        default=240,
        metavar="SECONDS",
        help="after which it ends and shows where it hung (default: 240)",
    )
    options = parser.parse_args()
    for name, known in (("sections", _SECTIONS), ("peers", _gpu_build.PEERS)):
        text = getattr(options, name)
        chosen = set() if name == "peers" and text == "none" else set(text.split(","))
        if unknown := chosen - set(known):
            parser.error(
                f"--{name}: {', '.join(sorted(unknown))}: none of {', '.join(known)}"
            )
        setattr(options, name, chosen)
    return options


def _set_environment() -> None:
    """Before JAX is imported."""
    # No graphs: then each call of a program calls its handlers, on every side.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_enable_command_buffer=".strip()
    # Room for the others.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.4")


def _run(options: argparse.Namespace, results: Results) -> None:
    # Not before _set_environment().
    import jax

    import jax_bfc

    if jax.default_backend() != "gpu":
        raise SystemExit(
            f"gpu.py: JAX runs on {jax.default_backend()!r} here; a GPU is wanted, "
            "and jax[cuda13] or jax[cuda12]"
        )
    import _gpu_library
    import _gpu_pairs
    import _gpu_programs

    say("building")
    path, peers = _gpu_build.build(
        folder=options.build_folder,
        definitions={
            "BENCH_XLA_INCLUDE_DIR": jax.ffi.include_dir(),
            "jax_bfc_DIR": jax_bfc.cmake_dir(),
        },
        wanted=options.peers,
        wheels=options.wheels,
        say=say,
    )
    effort = Effort.quick() if options.quick else Effort.full()
    cores = len(os.sched_getaffinity(0))
    print(
        f"{jax.devices()[0].device_kind}, {cores} cores, jax {jax.__version__}, "
        f"jax_bfc {jax_bfc.__version__}, {effort.rounds} rounds"
    )
    library = _gpu_library.Library(path)
    with contextlib.ExitStack() as stack:
        needed = {"pairs", "threads"} & options.sections
        workers = [
            stack.enter_context(Worker(side, folder=folder, arena_bytes=_PEER_BYTES))
            for folder, sides in peers.items()
            for side in sides
            if needed
        ]
        if "pairs" in options.sections:
            results.attempt(
                "pairs",
                lambda: _gpu_pairs.measure_pairs(
                    library, workers, effort=effort, results=results
                ),
            )
        if "threads" in options.sections:
            results.attempt(
                "threads",
                lambda: _gpu_pairs.measure_threads(
                    library, workers, effort=effort, cores=cores, results=results
                ),
            )
    if "growth" in options.sections:
        results.attempt(
            "growth",
            lambda: _gpu_programs.measure_growth(
                library, effort=effort, results=results
            ),
        )
    if "steps" in options.sections:
        results.attempt(
            "steps",
            lambda: _gpu_programs.measure_steps(
                library, effort=effort, results=results
            ),
        )


def main() -> int:
    options = _arguments()
    faulthandler.enable()
    faulthandler.dump_traceback_later(options.timeout, exit=True)
    _set_environment()
    results = Results()
    begin = time.monotonic()
    _run(options, results)
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


if __name__ == "__main__":
    sys.exit(main())
