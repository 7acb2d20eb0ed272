"""Compares jax_bfc with other allocators, in one run.

`python benchmarks/run.py`; README.md says what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

import _bars
import _measure
import _peers
import _report
import _workers


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the time, for a first look"
    )
    parser.add_argument(
        "--peers",
        default=",".join(_peers.PEERS),
        metavar="NAMES",
        help=f"some of {','.join(_peers.PEERS)}, or none (default: all that are found)",
    )
    parser.add_argument(
        "--workloads",
        metavar="NAMES",
        help="only these, such as lifo,churn (default: all)",
    )
    parser.add_argument(
        "--tensorflow-python",
        default=sys.executable,
        metavar="PATH",
        help="a Python with tensorflow-cpu",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="also write everything that was measured there",
    )
    options = parser.parse_args()
    options.peers = set() if options.peers == "none" else set(options.peers.split(","))
    if unknown := options.peers - set(_peers.PEERS):
        parser.error(f"--peers: no such peer: {', '.join(sorted(unknown))}")
    known = {case.workload for group in _measure.groups() for case in group}
    options.workloads = (
        known if options.workloads is None else set(options.workloads.split(","))
    )
    if unknown := options.workloads - known:
        parser.error(
            f"--workloads: {', '.join(sorted(unknown))}: "
            f"none of {', '.join(sorted(known))}"
        )
    return options


def main() -> None:
    options = _arguments()
    here = Path(__file__).resolve().parent
    folder = here / "build" / "workers"
    tensorflow = (
        _peers.find_tensorflow(options.tensorflow_python)
        if "tensorflow" in options.peers
        else None
    )
    peers, missing = _peers.find_peers(wanted=options.peers, tensorflow=tensorflow)

    _report.say("building")
    headers = _peers.find_xla_headers()
    if headers is None:
        missing.append(f"{_peers.C_TABLE}: it needs XLA's headers; pip install jaxlib")
    _workers.build(
        folder=folder,
        definitions={
            "BENCH_TENSORFLOW_DIR": str(tensorflow or ""),
            "BENCH_XLA_INCLUDE_DIR": str(headers or ""),
        },
    )
    sides = _peers.our_sides(with_c_table=headers is not None) + peers

    effort = _measure.Effort.quick() if options.quick else _measure.Effort.full()
    begin = time.monotonic()
    rows: list[_measure.Row] = []
    for group in _measure.groups():
        cases = [case for case in group if case.workload in options.workloads]
        if cases:
            _report.say(f"measuring {cases[0].workload}")
            rows += _measure.measure_group(
                cases, sides=sides, folder=folder, effort=effort, say=_report.say
            )
    _report.say("measuring first allocations")
    firsts = _measure.measure_first(sides=sides, folder=folder, effort=effort)
    bars = _bars.bars(rows, firsts)

    print(
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
        f"{effort.rounds} rounds, "
        f"{time.monotonic() - begin:.0f} s. ns per pair: the median batch. "
        "Percentiles: single allocations, less the reading of the clock "
        f"({rows[0].clock if rows else 'not read'})."
    )
    _report.print_rows(rows)
    _report.print_first(firsts)
    _report.print_bars(bars)
    for line in missing:
        print(f"not found: {line}")
    if options.json is not None:
        options.json.write_text(
            json.dumps(_report.as_json(rows, firsts, bars), indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
