"""Builds the C++ kernels with CMake, once for each version of their source."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax

import jax_bfc

KERNELS = Path(__file__).parent.parent / "kernels"
LIBRARY = "libtransformer_kernels.so"


class BuildError(RuntimeError):
    """The kernels could not be built; the text says why and what to do."""


def default_cache() -> Path:
    """Where built kernels are kept: $XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "jax_bfc_examples"


def fingerprint() -> str:
    """Changes with whatever goes into the library: sources, headers, compiler."""
    digest = hashlib.sha256()
    headers = Path(jax_bfc.include_dir())
    for folder in (KERNELS, headers):
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            digest.update(str(path.relative_to(folder)).encode())
            digest.update(path.read_bytes())
    for text in (
        jax.ffi.include_dir(),
        jax.__version__,
        *(os.environ.get(name, "") for name in ("CXX", "CXXFLAGS")),
    ):
        digest.update(f"\0{text}".encode())
    return digest.hexdigest()[:16]


def cmake_program() -> str:
    """CMake from the path, or the one that `pip install cmake` brings."""
    program = shutil.which("cmake") or shutil.which(
        "cmake", path=str(Path(sys.executable).parent)
    )
    if program is None:
        try:
            from cmake import CMAKE_BIN_DIR  # type: ignore[import-not-found,unused-ignore]
        except ImportError as error:
            raise BuildError(
                "CMake was not found. Install it: pip install cmake ninja"
            ) from error
        program = str(Path(CMAKE_BIN_DIR) / "cmake")
    return program


def run(command: list[str], log: Path) -> None:
    """Runs one step of the build; raises BuildError with the end of its output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    with log.open("a") as out:
        out.write(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}\n")
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
        raise BuildError(
            f"Building the kernels failed ({' '.join(command[:2])} exited with "
            f"{done.returncode}). It needs a C++17 compiler, CMake 3.19 and the "
            f"installed jax and jax_bfc. The end of its output, all of which is in "
            f"{log}:\n{tail}"
        )


def build(cache: Path | None = None) -> Path:
    """Returns the library's path, built now unless the cache has it.

    Args:
      cache: folder that holds a folder for each version; default_cache() if None.

    Raises:
      BuildError: no CMake or compiler, or the compiler refused the source.
    """
    folder = (cache or default_cache()) / f"transformer-{fingerprint()}"
    library = folder / LIBRARY
    folder.mkdir(parents=True, exist_ok=True)
    # One process builds, others that start at the same time wait for it.
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if library.exists():
            return library
        log = folder / "build.log"
        log.unlink(missing_ok=True)
        tree = folder / "tree"
        shutil.rmtree(tree, ignore_errors=True)
        cmake = cmake_program()
        ninja = shutil.which("ninja") or shutil.which(
            "ninja", path=str(Path(sys.executable).parent)
        )
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        configure = [cmake, "-S", str(KERNELS), "-B", str(tree), *generator]
        run([*configure, f"-DPython_EXECUTABLE={sys.executable}"], log)
        run([cmake, "--build", str(tree), "-j", str(os.cpu_count() or 1)], log)
        # Moved in whole, so that an interrupted build leaves no library.
        (tree / LIBRARY).replace(library)
        shutil.rmtree(tree, ignore_errors=True)
        return library
