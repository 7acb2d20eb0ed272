"""The command line: info, bench, and progress on a terminal."""

import json
import os
import pathlib
import pty
import shlex
import subprocess
import sys

import jax
import pytest
from pools import MIB, run_cli, run_python

import jax_bfc


def test_info_names_versions_and_every_device() -> None:
    run = run_cli("info")
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("versions")
    for word in ("jaxlib", "cuda_driver", "cpu:0", "limit_bytes", "bytes_in_use"):
        assert word in run.stdout


def test_info_as_json() -> None:
    run = run_cli("info", "--json")
    assert (run.returncode, run.stderr) == (0, "")
    info = json.loads(run.stdout)
    assert info["versions"]["jax"] == jax.__version__
    assert info["versions"]["jax_bfc"] == jax_bfc.__version__
    (cpu,) = [row for row in info["devices"] if row["device"] == "cpu:0"]
    assert cpu["config"]["growth_factor"] == 2.0
    assert cpu["config"]["limit_bytes"] == cpu["statistics"]["bytes_limit"]
    assert set(cpu["statistics"]) == set(jax_bfc.memory_stats())


def test_info_without_a_backend_is_one_line() -> None:
    code = """
import sys
from jax_bfc.__main__ import main
sys.exit(main(["info"]))
"""
    run = run_python(code, env={"JAX_PLATFORMS": "nonsense"})
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("jax_bfc: JAX has no usable backend")
    assert run.stderr.count("\n") == 1


def test_bench_has_a_row_for_each_workload() -> None:
    run = run_cli("bench", "--rounds", "3", "--json")
    assert (run.returncode, run.stderr) == (0, "")
    rows = json.loads(run.stdout)
    names = ["one_size", "four_live", "churn", "touch"]
    assert [row["workload"] for row in rows] == names
    for row in rows:
        assert (row["device"], row["peer"]) == ("cpu:0", "malloc")
        assert 0 < row["pool_ns"] <= row["pool_p99_ns"]
        assert 0 < row["peer_ns"] <= row["peer_p99_ns"]
        assert row["ratio"] > 0
    table = run_cli("bench", "--rounds", "2")
    assert table.returncode == 0, table.stderr
    assert table.stdout.startswith("cpu:0, 2 rounds")
    assert all(f"\n{name} " in table.stdout for name in names)


def test_bench_gives_all_back() -> None:
    code = """
import jax_bfc
from jax_bfc._bench import bench
bench(rounds=2)
print(jax_bfc.memory_stats()["num_live"], list(jax_bfc.kernel_stats()))
"""
    run = run_python(code)
    assert run.stdout.strip() == "0 ['(bench)']", run.stderr


@pytest.mark.parametrize("rounds", ["1", "-3", "x", "1e3", "9" * 100_000])
def test_bench_refuses_rounds_that_make_no_sense(rounds: str) -> None:
    run = run_cli("bench", "--rounds", rounds)
    assert (run.returncode, run.stdout) == (2, "")
    assert "valid: 2 to 1000000" in run.stderr
    assert run.stderr.count("\n") == 1


def test_bench_that_does_not_fit_says_so_in_one_line() -> None:
    code = """
import sys
from jax_bfc.__main__ import main
sys.exit(main(["bench", "--rounds", "2"]))
"""
    run = run_python(code, env={"JAX_BFC_LIMIT_BYTES": str(8 * MIB)})
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("jax_bfc: kernel '(bench)' on cpu:0 asked for")
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize("rich", [True, False])
def test_progress_is_shown_on_a_terminal_and_wiped(
    rich: bool, tmp_path: pathlib.Path
) -> None:
    trace = tmp_path / "t\x1b[31m.csv"  # what a terminal would obey
    trace.write_text("op,id,bytes,stream\na,1,1,0\nf,1,1,0\n")
    code = f"""
import sys
if not {rich}:
    sys.modules["rich"] = None
from jax_bfc.__main__ import main
sys.exit(main(["plan", sys.argv[1]]))
"""
    terminal, end = pty.openpty()
    run = subprocess.run(
        [sys.executable, "-P", "-c", code, str(trace)],
        stdout=subprocess.PIPE,
        stderr=end,
        env=os.environ | {"TERM": "xterm-256color"},
        check=False,
    )
    os.close(end)
    shown = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert run.returncode == 0
    assert "planning t?[31m.csv" in shown
    assert "\x1b[31m.csv" not in shown
    assert shown.endswith("\x1b[2K" if rich else "\r\x1b[K")


def cli_in_a_shell(
    command: str, *arguments: bytes | pathlib.Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """``command`` with $JB for the command line and $1, ... for the arguments."""
    jb = f"{shlex.quote(sys.executable)} -P -m jax_bfc"
    return subprocess.run(
        [
            "bash",
            "-c",
            command.replace("$JB", jb),
            "bash",
            *map(os.fsencode, arguments),
        ],
        env=os.environ | (env or {}),
        capture_output=True,
        check=False,
    )


@pytest.fixture
def trace(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "t.csv"
    path.write_text("op,id,bytes,stream\na,1,1,0\nf,1,1,0\n")
    return path


ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.parametrize("command", ["replay", "plan", "view"])
@pytest.mark.parametrize("env", [ASCII, {"PYTHONIOENCODING": "latin-1:strict"}, {}])
def test_a_name_that_the_terminal_cannot_show_is_escaped(
    command: str, env: dict[str, str], trace: pathlib.Path
) -> None:
    path = os.fsencode(trace.parent) + b"/\xff\xd1\x88\x1b[31m.csv"
    pathlib.Path(os.fsdecode(path)).write_bytes(trace.read_bytes())
    page = path.replace(b".csv", b".html")
    more = f' -o "${2}"' if command == "view" else ""
    run = cli_in_a_shell(f'$JB {command} "$1"{more}', path, page, env=env)
    assert (run.returncode, run.stderr) == (0, b"")
    missing = path.replace(b".csv", b".none")
    run = cli_in_a_shell(f'$JB {command} "$1"{more}', missing, page, env=env)
    assert (run.returncode, run.stdout, run.stderr.count(b"\n")) == (2, b"", 1)


def test_a_kernel_name_that_nothing_can_show_is_drawn(tmp_path: pathlib.Path) -> None:
    with jax_bfc.scratch(1000):
        text = jax_bfc.snapshot().to_json().replace("(python)", "\\udcff$x_1")
    (tmp_path / "s.json").write_text(text)
    for suffix in (".html", ".json", ".png"):
        run = cli_in_a_shell(
            '$JB view "$1" -o "$2"', tmp_path / "s.json", tmp_path / f"v{suffix}"
        )
        assert (run.returncode, run.stderr) == (0, b"")


@pytest.mark.parametrize("arguments", ['replay "$1"', "--help", "replay --help"])
def test_output_that_cannot_be_written_is_one_line(
    arguments: str, trace: pathlib.Path
) -> None:
    full = cli_in_a_shell(f"$JB {arguments} > /dev/full", trace)
    assert full.returncode == 2
    reason = b"standard output cannot be written: No space left on device\n"
    assert full.stderr == b"jax_bfc: " + reason
    closed = cli_in_a_shell(f"$JB {arguments} >&-", trace)
    assert closed.returncode == 2
    assert closed.stderr == b"jax_bfc: standard output is closed\n"


@pytest.mark.parametrize("target", ["&-", "/dev/full"])
def test_without_stderr_the_status_is_left(target: str, trace: pathlib.Path) -> None:
    run = cli_in_a_shell(f'$JB replay "$1" 2>{target}', trace.with_name("none.csv"))
    assert (run.returncode, run.stdout) == (2, b"")
    run = cli_in_a_shell(f'$JB replay "$1" 2>{target}', trace)
    assert run.returncode == 0
    assert run.stdout


def test_a_closed_stdin_is_one_line() -> None:
    run = cli_in_a_shell("$JB replay - <&-")
    assert (run.returncode, run.stdout) == (2, b"")
    assert run.stderr == b"jax_bfc: -: cannot be read: standard input is closed\n"


def test_a_file_never_gets_the_number_of_a_closed_stream(
    trace: pathlib.Path,
) -> None:
    page = trace.with_suffix(".html")
    run = cli_in_a_shell('$JB view "$1" -o "$2" <&- 2>&-', trace, page)
    assert run.returncode == 0
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_info_says_whose_statistics_it_shows() -> None:
    assert (
        "statistics of this process, which has just started" in run_cli("info").stdout
    )
