"""Compares jax_bfc with other allocators on a GPU, in one run.

`python benchmarks/gpu.py`; README.md says what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

import _gpu_build
import _gpu_run
from _gpu_measure import Effort, Results
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
    _gpu_run.add_options(parser, timeout=240)
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


def _run(options: argparse.Namespace, results: Results) -> None:
    # Not before _gpu_run.run() has set the environment.
    import _gpu_library
    import _gpu_pairs
    import _gpu_programs

    effort = Effort.quick() if options.quick else Effort.full()
    path, peers = _gpu_run.build(
        "gpu.py",
        options,
        rounds=effort.rounds,
        peers=options.peers,
        wheels=options.wheels,
    )
    cores = len(os.sched_getaffinity(0))
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
    # No graphs: then each call of a program calls its handlers, on every side.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_enable_command_buffer=".strip()
    return _gpu_run.run(options, lambda results: _run(options, results))


if __name__ == "__main__":
    sys.exit(main())
