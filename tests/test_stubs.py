"""The checked-in types of the native module are those that nanobind writes.

To write them anew: ``python -m nanobind.stubgen -m jax_bfc._core
-p tests/core_stub.nb -o jax_bfc/_core.pyi``, outside the repository's root.
"""

import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from pools import run

_WRITTEN_BY = "3.1"
_ROOT = Path(__file__).parent.parent


def test_the_stub_is_what_nanobind_writes(tmp_path: Path) -> None:
    nanobind = version("nanobind")
    if not nanobind.startswith(_WRITTEN_BY + "."):
        pytest.skip(f"nanobind is {nanobind}, the stub is of {_WRITTEN_BY}")
    written = tmp_path / "_core.pyi"
    command = [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "jax_bfc._core"]
    command += ["-p", str(_ROOT / "tests/core_stub.nb"), "-o", str(written)]
    # Not in the repository, where Python would find the sources instead.
    run(*command, cwd=tmp_path, timeout=120)
    expected = (_ROOT / "jax_bfc/_core.pyi").read_text(encoding="utf-8")
    assert written.read_text(encoding="utf-8") == expected
