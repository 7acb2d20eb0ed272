"""examples/row_softmax_cuda: builds and runs as docs/gpu.md says."""

import sys
from pathlib import Path

from pools import run

EXAMPLE = Path(__file__).parents[2] / "examples" / "row_softmax_cuda"


def test_the_first_cuda_kernel_builds_and_runs(tmp_path: Path) -> None:
    run("cmake", "-S", EXAMPLE, "-B", tmp_path, f"-DPython_EXECUTABLE={sys.executable}")
    run("cmake", "--build", tmp_path)
    out = run(sys.executable, "-P", EXAMPLE / "run.py", tmp_path)
    assert "largest difference from jax.nn.softmax" in out
    rows = dict(line.split(maxsplit=1) for line in out.splitlines() if "  " in line)
    assert rows["calls"] == "1"
