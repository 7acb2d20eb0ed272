"""Builds the kernels with CMake, once for each version of their source."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax

import jax_bfc

EXAMPLE = Path(__file__).parent.parent


@dataclass(frozen=True)
class Project:
    """A CMake project whose library the example loads."""

    name: str
    folders: tuple[str, ...]  # that its source is in; the first is the project's
    needs: str

    @property
    def library(self) -> str:
        return f"lib{self.name}_kernels.so"


CPU = Project("transformer", ("kernels",), "a C++17 compiler, CMake 3.19")
CUDA = Project(
    "transformer_cuda",
    ("cuda", "kernels"),
    "a CUDA toolkit with nvcc and cuBLASLt, a C++20 compiler, CMake 3.24",
)


class BuildError(RuntimeError):
    """The kernels could not be built; the text says why and what to do."""


def default_cache() -> Path:
    """Where built kernels are kept: $XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "jax_bfc_examples"


def fingerprint(project: Project) -> str:
    """Changes with whatever goes into the library: sources, headers, compiler, and
    the GPU that it is for."""
    digest = hashlib.sha256()
    sources = [EXAMPLE / folder for folder in project.folders]
    for folder in (*sources, Path(jax_bfc.include_dir())):
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            digest.update(str(path.relative_to(folder)).encode())
            digest.update(path.read_bytes())
    for text in (
        jax.ffi.include_dir(),
        jax.__version__,
        *(os.environ.get(name, "") for name in ("CXX", "CXXFLAGS")),
        *(cuda_fingerprint() if project is CUDA else ()),
    ):
        digest.update(f"\0{text}".encode())
    return digest.hexdigest()[:16]


def cuda_compiler() -> str | None:
    """What to tell CMake of nvcc, where it would not find it by itself."""
    if "CUDACXX" in os.environ or shutil.which("nvcc"):
        return None
    usual = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "nvcc"
    return str(usual) if usual.exists() else None


def cuda_fingerprint() -> tuple[str, ...]:
    names = ("CUDACXX", "CUDAFLAGS", "CUDAARCHS", "CUDA_HOME")
    return (
        *(os.environ.get(name, "") for name in names),
        str(shutil.which("nvcc")),
        *(str(device.device_kind) for device in jax.devices("cuda")),
    )


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


def run(command: list[str], log: Path, needs: str) -> None:
    """Runs one step of the build; raises BuildError with the end of its output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    with log.open("a") as out:
        out.write(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}\n")
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
        raise BuildError(
            f"Building the kernels failed ({' '.join(command[:2])} exited with "
            f"{done.returncode}). It needs {needs} and the installed jax and jax_bfc. "
            f"The end of its output, all of which is in {log}:\n{tail}"
        )


def build(cache: Path | None = None, project: Project = CPU) -> Path:
    """Returns the library's path, built now unless the cache has it.

    Args:
      project: CPU or CUDA.
      cache: folder that holds a folder for each version; default_cache() if None.

    Raises:
      BuildError: no CMake or compiler, or the compiler refused the source.
    """
    folder = (cache or default_cache()) / f"{project.name}-{fingerprint(project)}"
    library = folder / project.library
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
        source = EXAMPLE / project.folders[0]
        configure = [cmake, "-S", str(source), "-B", str(tree), *generator]
        configure.append(f"-DPython_EXECUTABLE={sys.executable}")
        if project is CUDA and (nvcc := cuda_compiler()):
            configure.append(f"-DCMAKE_CUDA_COMPILER={nvcc}")
        run(configure, log, project.needs)
        jobs = str(os.cpu_count() or 1)
        run([cmake, "--build", str(tree), "-j", jobs], log, project.needs)
        # Moved in whole, so that an interrupted build leaves no library.
        (tree / project.library).replace(library)
        shutil.rmtree(tree, ignore_errors=True)
        return library
