"""Compares two versions of jax_bfc on a GPU, in one sitting.

`python benchmarks/gpu_compare.py --old FOLDER --new FOLDER`, each a folder into which
`pip install --target` has put a package. Both are measured by this folder's programs,
in processes that take turns. Rows of others, such as XLA's scratch, are printed too:
their ratios are 1 but for noise, so they say how much of it there is.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import _report
from _report import say

_HERE = Path(__file__).resolve().parent
# The programs, and how they are asked to leave out what is not compared.
_PROGRAMS = {
    "gpu.py": ["--quick", "--peers", "none", "--sections", "pairs,threads"],
    "graphs.py": ["--ours", "--rounds", "30"],
}

# Of a row: section, workload, threads, side.
_Key = tuple[str, str, int, str]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--old", type=Path, required=True, metavar="FOLDER", help="the package before")
    add("--new", type=Path, required=True, metavar="FOLDER", help="the package after")
    add("--work", type=Path, required=True, metavar="FOLDER", help="to build in")
    add("--turns", type=int, default=5, help="of each version (default: 5)")
    add("--json", type=Path, metavar="FILE", help="also write all figures there")
    options = parser.parse_args()
    if options.turns < 1:
        parser.error(f"--turns {options.turns}: at least 1")
    for name in ("old", "new"):
        if not (getattr(options, name) / "jax_bfc").is_dir():
            parser.error(f"--{name} {getattr(options, name)}: no jax_bfc there")
    return options


def _measure(site: Path, work: Path) -> dict[_Key, float]:
    """ns of each row, of one process for each program."""
    found: dict[_Key, float] = {}
    work.mkdir(parents=True, exist_ok=True)
    for program, arguments in _PROGRAMS.items():
        path = work / f"{program}.json"
        command = [sys.executable, str(_HERE / program), *arguments]
        # Handlers are built against the package's own headers.
        command += ["--build-folder", str(work / "build"), "--json", str(path)]
        done = subprocess.run(
            command,
            env=os.environ | {"PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(
                f"{program} on {site} ended with {done.returncode}:\n"
                f"{done.stdout}{done.stderr}"
            )
        for section, rows in json.loads(path.read_text())["sections"].items():
            for row in rows:
                workload = f"{row['workload']} {row['n']:,}" if row["n"] else ""
                workload = workload or row["workload"]
                found[section, workload, row["threads"], row["side"]] = row["ns"]
    return found


def main() -> int:
    options = _arguments()
    turns: dict[str, list[dict[_Key, float]]] = {"old": [], "new": []}
    for turn in range(options.turns):
        # Whoever is first in one turn is second in the next.
        for name in ("old", "new")[:: 1 if turn % 2 == 0 else -1]:
            say(f"turn {turn + 1} of {options.turns}: {name}")
            work = options.work / name
            turns[name].append(_measure(getattr(options, name), work))
    body = []
    figures = []
    for key in turns["new"][0]:
        if any(key not in found for name in turns for found in turns[name]):
            continue
        old, new = ([found[key] for found in turns[name]] for name in ("old", "new"))
        ratios = [n / o for n, o in zip(new, old, strict=True)]
        section, workload, threads, side = key
        ratio = statistics.median(ratios)
        body.append(
            (
                workload,
                str(threads),
                side,
                f"{statistics.median(old):,.1f}",
                f"{statistics.median(new):,.1f}",
                f"{ratio:.3f}",
                f"{min(ratios):.3f} to {max(ratios):.3f}",
            )
        )
        figures.append(
            {
                "section": section,
                "workload": workload,
                "threads": threads,
                "side": side,
                "old_ns": old,
                "new_ns": new,
                "new_over_old": ratio,
            }
        )
    header = ("workload", "threads", "side", "old ns", "new ns", "new / old", "range")
    _report.print_table(
        f"medians of {options.turns} turns; under 1, the new one is faster",
        header,
        body,
    )
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
