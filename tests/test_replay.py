"""The command line: replay, and bad commands."""

from __future__ import annotations

import gzip
import json
import os
import pathlib
import subprocess
import sys

import pytest
from pools import run_cli

from jax_bfc import __main__ as cli
from jax_bfc import _trace

TRACES = pathlib.Path(__file__).parent / "traces"
OURS = "op,id,bytes,stream\n"


def write(directory: pathlib.Path, content: str, name: str = "t.csv") -> pathlib.Path:
    path = directory / name
    path.write_text(content)
    return path


POLICIES = ("bfc", "xla", "buddy", "slab", "first_fit")
BARS = {"deeplab": 1.026, "gpt": 1.066, "moe": 1.093}


def test_replay_json_meets_the_bars_of_the_recorded_traces() -> None:
    paths = {name: str(TRACES / f"{name}_train.csv.gz") for name in BARS}
    run = run_cli("replay", *paths.values(), "--policy", "bfc", "--json")
    assert (run.returncode, run.stderr) == (0, "")
    rows = {row["trace"]: row for row in json.loads(run.stdout)}
    assert len(rows) == len(BARS)
    for name, bar in BARS.items():
        row = rows[paths[name]]
        assert row["policy"] == "bfc"
        assert row["ratio"] == pytest.approx(
            row["high_water_bytes"] / row["peak_live_bytes"]
        )
        assert 1 <= row["ratio"] <= bar
        assert row["high_water_bytes"] <= row["mapped_bytes"]
        assert row["ns_per_event"] > 0
        assert row["events"] == len(_trace.read_trace(paths[name]))


# What an independent simulation of the same rules gave: tests/traces/README.md.
REFERENCES = {
    "xla": {"deeplab": 1.040, "gpt": 1.137, "moe": 1.101},
    "buddy": {"gpt": 1.453, "moe": 1.264},
}


@pytest.mark.parametrize("policy", REFERENCES)
def test_references_place_as_another_simulation_of_their_rules(policy: str) -> None:
    names = REFERENCES[policy]
    paths = [str(TRACES / f"{name}_train.csv.gz") for name in names]
    run = run_cli("replay", *paths, "--policy", policy, "--json")
    rows = json.loads(run.stdout)
    ratios = [row["ratio"] for row in rows]
    assert ratios == pytest.approx(list(names.values()), abs=6e-4)
    assert all(0 < row["external_fragmentation"] < 1 for row in rows)


def test_replay_prints_an_aligned_table(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, OURS + "a,1,1048576,0\na,2,100,0\nf,1,1048576,0\n")
    run = run_cli("replay", str(path))
    header, *rows = run.stdout.splitlines()
    assert header.split()[:3] == ["trace", "policy", "events"]
    assert [row.split()[:3] for row in rows] == [
        ["t.csv", policy, "3"] for policy in POLICIES
    ]
    assert {len(row) for row in rows} == {len(header)}
    assert run.stderr == ""  # no progress where nobody looks on


def test_replay_of_a_small_trace_is_exact(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, OURS + "a,1,1000,0\na,2,100,0\nf,1,1000,0\na,3,2000,0\n")
    run = run_cli("replay", "--json", "--policy=bfc", str(path))
    (row,) = json.loads(run.stdout)
    # 1 in [0, 1024), 2 in [1024, 1280), 3 in [1280, 3328).
    assert (row["events"], row["peak_live_bytes"], row["high_water_bytes"]) == (
        4,
        2100,
        3328,
    )


BAD_COMMANDS = {
    "no command": ([], "COMMAND"),
    "unknown command": (["fly"], "invalid choice: 'fly'"),
    "no trace": (["replay"], "TRACE"),
    "unknown policy": (
        ["replay", "x.csv", "--policy", "worst_fit"],
        "invalid choice: 'worst_fit' (choose from",
    ),
    "plan without a trace": (["plan"], "TRACE"),
    "plan of two traces": (["plan", "x.csv", "y.csv"], "y.csv"),
    "plan of a missing file": (["plan", "missing.csv"], "missing.csv: cannot be"),
    "missing file": (["replay", "missing.csv"], "missing.csv: cannot be read"),
    "file with a newline in its name": (["replay", "a\nb.csv"], "cannot be read"),
}


@pytest.mark.parametrize("case", BAD_COMMANDS)
def test_bad_commands_exit_with_2_and_one_line(
    case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = BAD_COMMANDS[case]
    assert cli.main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("jax_bfc: ")
    assert message in output.err
    assert output.err.count("\n") == 1


def test_one_bad_trace_among_good_ones_is_named(tmp_path: pathlib.Path) -> None:
    good = write(tmp_path, OURS + "a,1,1,0\n", "good.csv")
    bad = write(tmp_path, OURS + "f,1,1,0\n", "bad.csv")
    run = run_cli("replay", str(good), str(bad), "--json")
    assert (run.returncode, run.stdout) == (2, "")
    assert "bad.csv:2: frees 1" in run.stderr
    assert run.stderr.count("\n") == 1


def test_a_closed_pipe_is_no_traceback(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, OURS + "a,1,1,0\n")
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(
        [sys.executable, "-P", "-m", "jax_bfc", "replay", str(path)],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (run.returncode, run.stderr) == (1, b"")


HEADER = (
    "Thread,Time,Action,Pointer,Size,Stream,event,id,chunk_bytes,device,kernel,label"
)


def two_devices(directory: pathlib.Path) -> pathlib.Path:
    """One address, live on both: 1,000 bytes on cpu:0, then 3,000 on cuda:1."""
    rows = [
        f"0,{i},{action},0x100,{size},0,{action},{i},4096,{device},,"
        for i, (action, size, device) in enumerate(
            [
                ("allocate", 1000, "cpu:0"),
                ("allocate", 3000, "cuda:1"),
                ("free", 1000, "cpu:0"),
                ("free", 3000, "cuda:1"),
            ]
        )
    ]
    return write(directory, "\n".join([HEADER, *rows]))


@pytest.mark.parametrize("plain", [True, False])
def test_devices_are_kept_apart(
    plain: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not plain:
        monkeypatch.setattr(_trace, "split", lambda *_: None)
    trace = _trace.read_trace(two_devices(tmp_path))
    assert trace.devices == ("cpu:0", "cuda:1")
    assert trace.device.tolist() == [0, 1, 0, 1]
    cuda = trace.of_device("cuda:1")
    assert cuda.bytes.tolist() == [3000, 3000]
    assert cuda.ids.tolist() == [0, 0]


def test_replay_has_rows_by_device(tmp_path: pathlib.Path) -> None:
    path = str(two_devices(tmp_path))
    rows = json.loads(run_cli("replay", path, "--policy", "bfc", "--json").stdout)
    assert [(row["device"], row["peak_live_bytes"]) for row in rows] == [
        ("cpu:0", 1000),
        ("cuda:1", 3000),
    ]
    header, *lines = run_cli("replay", path, "--policy", "bfc").stdout.splitlines()
    assert header.split()[:3] == ["trace", "device", "policy"]
    assert [line.split()[1] for line in lines] == ["cpu:0", "cuda:1"]
    one = run_cli("replay", path, "--policy", "bfc", "--device", "cuda:1", "--json")
    assert [row["peak_live_bytes"] for row in json.loads(one.stdout)] == [3000]
    none = run_cli("replay", path, "--device", "cuda:0")
    assert (none.returncode, none.stdout) == (2, "")
    assert "no events of device 'cuda:0'; valid: cpu:0, cuda:1" in none.stderr


def test_plan_is_of_each_device(tmp_path: pathlib.Path) -> None:
    path = str(two_devices(tmp_path))
    plans = json.loads(run_cli("plan", path, "--json").stdout)
    assert [plan["peak_live_bytes"] for plan in plans] == [1000, 3000]
    assert "jax.local_devices(backend='cuda')[1]" in plans[1]["configure"]
    text = run_cli("plan", path, "--device", "cuda:1").stdout
    assert text.startswith("t.csv on cuda:1: 2 events")


def test_sizes_have_a_unit_that_fits(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, OURS + "a,1,100,0\na,2,5000,0\n")
    assert " 5.0 KiB " in run_cli("replay", str(path), "--policy", "bfc").stdout
    assert " 5.0 KiB " in run_cli("plan", str(path)).stdout


def test_a_log_that_begins_in_the_middle_has_a_way_in(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, OURS + "f,9,100,0\na,1,1000,0\nf,1,,0\nf,8,,0\n")
    refused = run_cli("replay", str(path))
    assert refused.returncode == 2
    assert ":2: frees 9" in refused.stderr
    assert "--from-middle" in refused.stderr
    run = run_cli("replay", str(path), "--from-middle", "--policy", "bfc")
    assert run.stdout.endswith("2 frees of what no line allocates were passed over\n")
    run = run_cli("plan", str(path), "--from-middle", "--json")
    plan = json.loads(run.stdout)
    assert (plan["events"], plan["skipped_frees"]) == (2, 2)
    page = tmp_path / "a.html"
    assert run_cli("view", str(path), "--from-middle", "-o", str(page)).returncode == 0


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("command", ["replay", "plan", "view"])
def test_a_dash_is_standard_input(
    command: str, packed: bool, tmp_path: pathlib.Path
) -> None:
    data = (OURS + "a,1,1000,0\nf,1,,0\n").encode()
    more = ["-o", str(tmp_path / "a.html")] if command == "view" else []
    run = subprocess.run(
        [sys.executable, "-P", "-m", "jax_bfc", command, "-", *more],
        input=gzip.compress(data) if packed else data,
        capture_output=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, b"")
