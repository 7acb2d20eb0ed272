"""The sides of the comparison: ours, and the allocators that are installed."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

EMPTY = "empty loop"
POOL = "jax_bfc pool"
C_TABLE = "jax_bfc C table"
ARENA = "jax_bfc arena"
TENSORFLOW = "TensorFlow BFC"
GLIBC = "glibc malloc"
GLIBC_RAISED = "glibc, thresholds raised"

# Its name, the libraries that have it (the first found is preloaded), and the
# package of Debian and Ubuntu.
_PRELOADED = (
    ("tcmalloc", ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4"), "google-perftools"),
    ("jemalloc", ("libjemalloc.so.2",), "libjemalloc2"),
    ("mimalloc", ("libmimalloc.so.3", "libmimalloc.so.2"), "libmimalloc2.0"),
    ("TBB malloc", ("libtbbmalloc_proxy.so.2",), "libtbbmalloc2"),
)
PEERS = ("glibc", "tcmalloc", "jemalloc", "mimalloc", "tbb", "tensorflow")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """One allocator: the worker executable that serves it and what that is told."""

    label: str
    worker: str
    argument: str
    preload: Path | None = None

    @property
    def environment(self) -> Mapping[str, str]:
        if self.preload is None:
            return {}
        # Room for thread-local storage of libraries loaded early.
        return {
            "LD_PRELOAD": str(self.preload),
            "GLIBC_TUNABLES": "glibc.rtld.optional_static_tls=16384",
        }

    @property
    def is_bfc(self) -> bool:
        """Whether it is an arena, with a size of its own, rather than a malloc."""
        return self.label in (POOL, C_TABLE, ARENA, TENSORFLOW)


def our_sides(*, with_c_table: bool) -> list[Side]:
    sides = [
        Side(label=EMPTY, worker="worker_empty", argument="empty"),
        Side(label=POOL, worker="worker_pool", argument="pool"),
        Side(label=ARENA, worker="worker_arena", argument="arena"),
    ]
    if with_c_table:
        sides.insert(
            2, Side(label=C_TABLE, worker="worker_c_table", argument="c_table")
        )
    return sides


def find_package(name: str, *, python: str) -> Path | None:
    """The folder of a package that `python` would import, without importing it."""
    code = (
        f"import importlib.util as u; s = u.find_spec({name!r}); "
        "print(s.submodule_search_locations[0] if s else '')"
    )
    try:
        found = subprocess.run(
            [python, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return Path(found) if found else None


def find_tensorflow(python: str) -> Path | None:
    """The tensorflow package that `python` would import, if it can be built on."""
    folder = find_package("tensorflow", python=python)
    if folder is None:
        return None
    wanted = (
        folder / "libtensorflow_framework.so.2",
        folder / "include" / "xla" / "tsl" / "framework" / "bfc_allocator.h",
    )
    return folder if all(path.exists() for path in wanted) else None


def find_xla_headers() -> Path | None:
    """XLA's FFI headers, which come with jaxlib."""
    folder = find_package("jaxlib", python=sys.executable)
    return folder / "include" if folder is not None else None


def _find_library(names: tuple[str, ...]) -> Path | None:
    folders = [
        Path("/usr/lib"),
        Path("/usr/lib64"),
        Path("/usr/local/lib"),
        Path("/lib"),
    ]
    folders += sorted(Path("/usr/lib").glob("*-linux-gnu"))
    for name in names:
        for folder in folders:
            if (folder / name).exists():
                return folder / name
    return None


def find_peers(
    *, wanted: set[str], tensorflow: Path | None
) -> tuple[list[Side], list[str]]:
    """The peers that are here, and for each that is not how to get it."""
    sides: list[Side] = []
    missing: list[str] = []
    if "glibc" in wanted:
        sides.append(Side(label=GLIBC, worker="worker_malloc", argument="malloc"))
        sides.append(
            Side(label=GLIBC_RAISED, worker="worker_malloc", argument="malloc_raised")
        )
    for label, libraries, package in _PRELOADED:
        if label.split()[0].lower() not in wanted:
            continue
        library = _find_library(libraries)
        if library is None:
            missing.append(
                f"{label}: no {' or '.join(libraries)}; "
                f"Debian and Ubuntu: apt install {package}"
            )
        else:
            sides.append(
                Side(
                    label=label,
                    worker="worker_malloc",
                    argument="malloc",
                    preload=library,
                )
            )
    if "tensorflow" in wanted:
        if tensorflow is None:
            missing.append(
                f"{TENSORFLOW}: pip install tensorflow-cpu, here or in any other "
                "environment, and then --tensorflow-python PATH/TO/ITS/python"
            )
        else:
            sides.append(
                Side(
                    label=TENSORFLOW, worker="worker_tensorflow", argument="tensorflow"
                )
            )
    return sides, missing
