"""The benchmarks' programs, which nobody runs in the tests, at least link."""

import subprocess
from pathlib import Path

_BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_the_workers_of_the_benchmarks_link(tmp_path: Path) -> None:
    build = str(tmp_path / "build")
    for command in (
        ["cmake", "-G", "Ninja", "-S", str(_BENCHMARKS), "-B", build],
        ["cmake", "--build", build, "--target", "worker_pool", "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "build" / "worker_pool").exists()
