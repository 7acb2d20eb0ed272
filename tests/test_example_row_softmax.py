"""examples/row_softmax: builds and runs as its README says."""

import shutil
import sys
from pathlib import Path

import pytest
from pools import run

EXAMPLE = Path(__file__).parent.parent / "examples" / "row_softmax"


def test_the_quick_start_builds_and_runs(tmp_path: Path) -> None:
    beside_python = str(Path(sys.executable).parent)
    cmake = shutil.which("cmake") or shutil.which("cmake", path=beside_python)
    if cmake is None:
        pytest.skip("needs CMake")
    run(cmake, "-S", EXAMPLE, "-B", tmp_path, f"-DPython_EXECUTABLE={sys.executable}")
    run(cmake, "--build", tmp_path)
    out = run(sys.executable, EXAMPLE / "run.py", tmp_path)
    assert "largest difference from jax.nn.softmax" in out
    rows = dict(line.split(maxsplit=1) for line in out.splitlines() if "  " in line)
    assert rows["calls"] == "1"
    assert rows["bytes_in_use"] == "0 (0 B)"
