"""What several test files do with pools, and with processes of their own."""

import contextlib
import gc
import os
import pathlib
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from typing import Any

import jax

import jax_bfc

MIB = 1 << 20
LIMIT = 64 * MIB


def state() -> tuple[Any, ...]:
    """All that can be read of the default device's pool."""
    return (
        jax_bfc.get_config(),
        jax_bfc.get_config(jax.devices()[0]),
        jax_bfc.memory_stats(),
        jax_bfc.kernel_stats(),
        jax_bfc.last_oom_report(),
    )


@contextlib.contextmanager
def unchanged() -> Iterator[None]:
    before = state()
    yield
    assert state() == before


def reset_pools() -> None:
    try:
        jax_bfc.reset()
    except RuntimeError:  # a cycle holds scratch
        gc.collect()
        jax_bfc.reset()


@contextlib.contextmanager
def fresh_pools() -> Iterator[None]:
    """Pools as new, with a limit of LIMIT, and the default growth."""
    reset_pools()
    jax_bfc.configure(
        limit_bytes=LIMIT,
        initial_bytes=2 * MIB,
        growth_factor=2.0,
        max_growth_bytes=1 << 30,
        preallocate=False,
        source="auto",
        huge_pages="auto",
    )
    yield
    reset_pools()
    jax_bfc.configure(memory_fraction=0.8, preallocate=False, huge_pages="auto")


def live() -> int:
    """Allocations of the default device that are not yet freed."""
    return jax_bfc.memory_stats()["num_live"]


def run_python(
    code: str, *, env: dict[str, str] | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """`code` in a process of its own, on CPU, where no JAX_BFC_* is set but `env`."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("JAX_BFC_")}
    return subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code)],
        env=inherited | {"JAX_PLATFORMS": "cpu"} | (env or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def output_of(code: str, *, env: dict[str, str] | None = None) -> str:
    """What it prints; it must end well."""
    done = run_python(code, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def run_cli(
    *arguments: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """``python -m jax_bfc`` with `arguments`, and `env` beside what is set."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "jax_bfc", *arguments],
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        check=False,
    )


def run(
    *command: object,
    env: dict[str, str] | None = None,
    cwd: pathlib.Path | None = None,
    timeout: float | None = 300,
) -> str:
    """What a command prints, with `env` beside what is set; it must end well."""
    done = subprocess.run(
        [str(part) for part in command],
        env=os.environ | (env or {}),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_kernels(source: pathlib.Path, folder: pathlib.Path, *options: str) -> None:
    """Builds a CMake project that finds the installed package, into `folder`."""
    configure = ["cmake", "-S", source, "-B", folder, "-G", "Ninja"]
    configure += [f"-Djax_bfc_DIR={jax_bfc.cmake_dir()}"]
    configure += [f"-DXLA_INCLUDE_DIR={jax.ffi.include_dir()}"]
    run(*configure, *options, timeout=None)
    run("cmake", "--build", folder, timeout=None)


def profiled_ranges(folder: str | os.PathLike[str]) -> list[tuple[str, int]]:
    """(name, bytes) of the scratch in the profile that JAX wrote to `folder`."""
    (path,) = pathlib.Path(folder).glob("**/*.xplane.pb")
    ranges = []
    with warnings.catch_warnings():  # of types of jaxlib's own
        warnings.simplefilter("ignore", DeprecationWarning)
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                for event in line.events:
                    if event.name.startswith("scratch "):
                        ranges.append((event.name, dict(event.stats)["bytes"]))
    return ranges
