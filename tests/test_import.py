"""Importing: again, from another's program, and from an editable install."""

import os
import pathlib
import subprocess
import sys

import pytest
from pools import run, run_python

import jax_bfc
from jax_bfc import _ffi


def test_it_can_be_imported_a_second_time() -> None:
    """As test runners and notebooks do that delete a package's modules."""
    code = """
import sys

def forget():
    for name in [n for n in sys.modules if n.split(".")[0] == "jax_bfc"]:
        del sys.modules[name]

def use():
    import jax_bfc
    with jax_bfc.scratch(100) as s, jax_bfc.peak() as p, jax_bfc.annotate():
        assert type(s) is jax_bfc.Scratch
        assert p.bytes >= 256
    jax_bfc.on_oom(print)
    return jax_bfc

first = use()
held = first.scratch(4 << 20).__enter__()
forget()
second = use()
assert second is not first
assert type(held) is second.Scratch
held.close()
del first, held, second
forget()
use()
print("ok")
"""
    done = run_python(code)
    assert (done.stdout, done.stderr) == ("ok\n", "")


def test_only_our_own_commands_go_without_jax(tmp_path: pathlib.Path) -> None:
    """Argv[0] is "-m" for every `python -m NAME` whose package imports this one; JAX
    imported after us would be started anew at exit."""
    package = tmp_path / "theirs"
    package.mkdir()
    (package / "__init__.py").write_text("import jax_bfc\n")
    (package / "program.py").write_text("import sys\nprint('jax' in sys.modules)\n")
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, sys\n"
        "if 'jax_bfc' in sys.orig_argv or '-mjax_bfc' in sys.orig_argv:\n"
        "    atexit.register(lambda: print('jax' in sys.modules, file=sys.stderr))\n"
    )
    env = {"PYTHONPATH": str(tmp_path)}
    python = sys.executable
    theirs = run(python, "-m", "theirs.program", "x", env=env, cwd=tmp_path)
    assert theirs.strip() == "True"
    for command in (["-m", "jax_bfc"], ["-mjax_bfc"]):
        done = subprocess.run(
            [python, *command, "replay", "--help"],
            env=os.environ | env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr.strip() == "False"


def test_the_headers_are_beside_the_native_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In an editable install the Python files are elsewhere."""
    monkeypatch.setattr(_ffi, "__file__", "/elsewhere/jax_bfc/_ffi.py")
    assert os.path.isfile(os.path.join(jax_bfc.include_dir(), "jax_bfc/scratch.h"))
    assert os.path.isfile(os.path.join(jax_bfc.cmake_dir(), "jax_bfcConfig.cmake"))
