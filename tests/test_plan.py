"""Offline placement and its command, checked from outside the core."""

from __future__ import annotations

import bisect
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest
from pools import run_cli

from jax_bfc import _core, _trace

TRACES = pathlib.Path(__file__).parent / "traces"
OURS = "op,id,bytes,stream\n"


def overlap(trace: _trace.Trace, offsets: npt.NDArray[np.uint64]) -> str | None:
    """The first two allocations that share a byte while both are live.

    Goes through the events with the live ranges in order of address. Knows
    nothing of how they were placed.
    """
    starts: list[int] = []
    live: list[tuple[int, int]] = []  # start and end, in the same order
    place = offsets.tolist()
    events = zip(
        trace.is_allocate.tolist(),
        trace.ids.tolist(),
        trace.bytes.tolist(),
        strict=True,
    )
    for is_allocate, number, size in events:
        begin, end = place[number], place[number] + max(1, size)
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


def test_the_checker_sees_an_overlap(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(OURS + "a,1,512,0\na,2,512,0\nf,1,,0\na,3,300,0\n")
    trace = _trace.read_trace(path)

    def check(*offsets: int) -> str | None:
        return overlap(trace, np.array(offsets, np.uint64))

    assert check(0, 512, 0) is None
    assert check(512, 0, 512) is None
    assert check(0, 511, 0) is not None
    assert check(511, 0, 1024) is not None
    assert check(0, 512, 256) == "2 at [256, 556) and one at (512, 1024)"


@pytest.mark.parametrize("name", ["deeplab", "gpt", "moe"])
def test_recorded_traces_are_placed_within_1_percent_of_their_peak(name: str) -> None:
    trace = _trace.read_trace(TRACES / f"{name}_train.csv.gz")
    plan = _core.plan(trace.is_allocate, trace.ids, trace.bytes)
    offsets = np.frombuffer(plan["offsets"], np.uint64)
    sizes = trace.bytes[trace.is_allocate == 1]
    assert len(offsets) == len(sizes) == plan["allocations"]
    assert overlap(trace, offsets) is None
    assert not np.any(offsets % 256)
    ends = (offsets + np.maximum(sizes, 1) + 255) // 256 * 256
    assert int(ends.max()) == plan["planned_bytes"]
    assert plan["planned_bytes"] <= 1.01 * plan["peak_live_bytes"]
    assert plan["planned_bytes"] <= plan["high_water_bytes"]


@pytest.fixture
def small(tmp_path: pathlib.Path) -> str:
    path = tmp_path / "t.csv"
    path.write_text(OURS + "a,1,1024,0\na,2,256,0\nf,1,,0\na,3,2048,0\n")
    return str(path)


def test_plan_json_is_one_object(small: str) -> None:
    run = run_cli("plan", small, "--json")
    assert (run.returncode, run.stderr) == (0, "")
    plan = json.loads(run.stdout)
    seconds = plan.pop("seconds")
    assert 0 < seconds < 60
    assert plan == {
        "trace": small,
        "events": 4,
        "allocations": 3,
        "peak_live_bytes": 2304,
        "high_water_bytes": 3328,
        "limit_bytes": 2 << 20,
        "planned_bytes": 2304,
        "passes": 1,
        "planned_ratio": 1.0,
        "ratio": pytest.approx(3328 / 2304),
        "configure": "jax_bfc.configure(limit_bytes=2097152)",
    }


def test_plan_prints_the_line_to_paste(small: str) -> None:
    run = run_cli("plan", small)
    first, *rows, last = run.stdout.splitlines()
    assert first.startswith("t.csv: 4 events, 3 allocations, planned in ")
    assert [row.split()[-1] for row in rows[2:-1]] == [
        "1.0000",
        "1.0000",
        "1.4444",
        "910.2222",
    ]
    assert last == "jax_bfc.configure(limit_bytes=2097152)"
    assert run.stderr == ""


def test_the_limit_of_a_plan_serves_the_trace_in_a_pool(
    tmp_path: pathlib.Path,
) -> None:
    random = np.random.default_rng(1)
    rows, live = [], []
    for number in range(600):
        size = int(2 ** random.uniform(8, 22))
        rows.append(f"a,{number},{size},0")
        live.append(number)
        while len(live) > 20 or (live and random.random() < 0.45):
            rows.append(f"f,{live.pop(int(random.integers(len(live))))},,0")
    path = tmp_path / "t.csv"
    path.write_text(OURS + "\n".join(rows))
    line = json.loads(run_cli("plan", str(path), "--json").stdout)["configure"]
    # In a process of its own, whose pool is nobody else's.
    code = (
        "import sys, jax_bfc\n"
        "from jax_bfc import _trace\n"
        f"{line}\n"
        "trace, live = _trace.read_trace(sys.argv[1]), {}\n"
        "for is_allocate, number, size in zip(\n"
        "    trace.is_allocate.tolist(), trace.ids.tolist(), trace.bytes.tolist()\n"
        "):\n"
        "    if is_allocate:\n"
        "        live[number] = jax_bfc.scratch(size)\n"
        "        live[number].__enter__()\n"
        "    else:\n"
        "        live.pop(number).__exit__(None, None, None)\n"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-P", "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert (run.returncode, run.stderr) == (0, "")


BAD = {
    "negative": ("a,1,-5,0\n", ":2: bytes is '-5'"),
    "free first": ("f,1,5,0\n", ":2: frees 1, which is not live"),
    "a million characters": (f"a,{'1' * 10**6},5,0\n", ":2: a line of 4,096"),
    "more than the range": (f"a,1,{2**46},0\na,2,0,0\n", "does not fit in"),
}


@pytest.mark.parametrize("command", ["plan", "replay"])
@pytest.mark.parametrize("case", BAD)
def test_bad_traces_are_one_line_and_status_2(
    case: str, command: str, tmp_path: pathlib.Path
) -> None:
    rows, message = BAD[case]
    path = tmp_path / "t.csv"
    path.write_text(OURS + rows)
    run = run_cli(command, str(path), "--json")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith(f"jax_bfc: {path}")
    assert message in run.stderr
    assert run.stderr.count("\n") == 1


def test_columns_of_different_lengths_are_refused() -> None:
    ids = np.zeros(2, np.uint32)
    with pytest.raises(ValueError, match="differ in length"):
        _core.plan(np.ones(1, np.uint8), ids, np.ones(1, np.uint64))
