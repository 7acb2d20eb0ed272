"""Builds what gpu.py measures, all at once: the handlers and a worker for each peer."""

from __future__ import annotations

import concurrent.futures
import glob
import os
import subprocess
import sys
from collections.abc import Callable, Set
from pathlib import Path

import _workers
from _peers import Side, find_package

RMM_POOL = "RMM pool"
RMM_ARENA = "RMM arena"
RMM_ASYNC = "RMM async"
TORCH = "PyTorch"
PEERS = ("rmm", "torch")

_HERE = Path(__file__).resolve().parent
_RMM_KINDS = {RMM_POOL: "pool", RMM_ARENA: "arena", RMM_ASYNC: "async"}
_RMM_WHEELS = ("librmm", "rapids_logger")


def _install_wheels(wheels: Path, folder: Path) -> None:
    """RMM's C++ library, from a folder of wheels, where no Python looks for it."""
    found = [
        path for name in _RMM_WHEELS for path in glob.glob(str(wheels / f"{name}*.whl"))
    ]
    if len(found) != len(_RMM_WHEELS):
        raise SystemExit(
            f"--wheels {wheels}: one wheel each of {' and '.join(_RMM_WHEELS)} is "
            f"wanted there; found: {', '.join(found) or 'none'}"
        )
    options = ["--no-index", "--no-deps", "--no-compile", "--upgrade", "--target"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", *options, str(folder), *found],
        check=True,
    )


def _find(name: str, *, site: Path | None) -> Path | None:
    if site is not None and (site / name).is_dir():
        return site / name
    return find_package(name, python=sys.executable)


def _find_rmm(site: Path | None) -> dict[str, str] | str:
    """What to define for the build, or why there is none."""
    rmm = _find("librmm", site=site)
    logger = _find("rapids_logger", site=site)
    if rmm is None or logger is None:
        return (
            "not installed: pip install librmm-cu13, or --wheels FOLDER with the "
            "wheels of librmm and rapids_logger"
        )
    return {"BENCH_RMM_DIR": str(rmm), "BENCH_RAPIDS_LOGGER_DIR": str(logger)}


def _find_torch() -> dict[str, str] | str:
    folder = find_package("torch", python=sys.executable)
    if folder is None:
        return "not installed: pip install torch"
    for wanted in (
        folder / "lib" / "libc10_cuda.so",
        folder / "include" / "c10" / "cuda" / "CUDACachingAllocator.h",
    ):
        if not wanted.exists():
            return f"a PyTorch without CUDA: there is no {wanted}"
    return {"BENCH_TORCH_DIR": str(folder)}


def build(
    *,
    folder: Path,
    definitions: dict[str, str],
    wanted: Set[str],
    wheels: Path | None,
    say: Callable[[str], None],
) -> tuple[Path, dict[Path, list[Side]]]:
    """The handlers' library, and for each folder with a worker its sides.

    A peer that is not there, or does not build, is left out, and said so.
    """
    site = None
    if wheels is not None and "rmm" in wanted:
        site = folder / "site"
        _install_wheels(wheels, site)
    peers: dict[str, tuple[dict[str, str], list[Side]]] = {}
    for name in PEERS:
        if name not in wanted:
            continue
        found = _find_rmm(site) if name == "rmm" else _find_torch()
        if isinstance(found, str):
            say(f"skipped: {name}: {found}")
            continue
        sides = (
            [
                Side(label=label, worker="peer_rmm", argument=kind)
                for label, kind in _RMM_KINDS.items()
            ]
            if name == "rmm"
            else [Side(label=TORCH, worker="peer_torch", argument="caching")]
        )
        peers[name] = (found, sides)

    nvcc = os.environ.get("CUDACXX") or _workers.find_tool("nvcc")
    if nvcc is None and Path("/usr/local/cuda/bin/nvcc").exists():
        nvcc = "/usr/local/cuda/bin/nvcc"
    if nvcc is None:
        raise SystemExit("nvcc was not found. Put CUDA's bin on the PATH")
    source = _HERE / "gpu"
    with concurrent.futures.ThreadPoolExecutor() as pool:
        handlers = pool.submit(
            _workers.build,
            folder=folder / "handlers",
            definitions={**definitions, "CMAKE_CUDA_COMPILER": nvcc},
            source=source,
        )
        builds = {
            name: pool.submit(
                _workers.build,
                folder=folder / name,
                definitions=found,
                source=source,
            )
            for name, (found, _sides) in peers.items()
        }
    handlers.result()
    built = {}
    for name, future in builds.items():
        try:
            future.result()
            built[folder / name] = peers[name][1]
        except SystemExit as error:
            say(f"skipped: {name}: {error}")
    return folder / "handlers" / "handlers.so", built
