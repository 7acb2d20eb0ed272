"""CUDA kernels, built once a session as an outside author would."""

import ctypes
import pathlib
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pools import build_kernels, run

import jax_bfc

HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="session", autouse=True)
def gpu() -> None:
    if jax.default_backend() != "gpu":
        pytest.skip("JAX has no CUDA device here")


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder with libkernels.so and libdriver_shim.so."""
    folder = tmp_path_factory.mktemp("gpu_kernels")
    root = HERE.parent.parent
    build_kernels(HERE / "kernels", folder, f"-DJAX_BFC_SOURCE_DIR={root / 'src'}")
    return folder


@pytest.fixture(scope="session")
def library(build: pathlib.Path) -> Any:
    loaded = ctypes.CDLL(str(build / "libkernels.so"))
    for name in ("Double", "DoubleGraph", "Addresses"):
        handler = jax.ffi.pycapsule(getattr(loaded, f"k{name}"))
        jax_bfc.register_ffi_target(f"gpu.{name}", handler, platform="CUDA")
    handler = jax.ffi.pycapsule(loaded.kDouble)
    jax.ffi.register_ffi_target("gpu.Plain", handler, platform="CUDA")
    return loaded


@pytest.fixture
def pool(library: Any) -> Iterator[Any]:
    """The device, its pool as new with a limit of 256 MiB; nothing left in use."""
    device = jax.devices()[0]
    jax.clear_caches()
    jax_bfc.reset()
    jax_bfc.configure(limit_bytes="256MiB", initial_bytes="2MiB", source="auto")
    yield device
    jax.clear_caches()
    jax_bfc.reset()


def double(x: Any, *, pause_ns: int = 0, target: str = "gpu.Double") -> Any:
    """``2 * x``, by way of scratch of the size of x."""
    result = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    call = jax.ffi.ffi_call(target, result, vmap_method="sequential")
    return call(x, pause_ns=np.int64(pause_ns))


def addresses(count: int, size: int, alignment: int = 1) -> list[int]:
    """Where one handler call gets `count` blocks of `size` bytes."""
    with jax.enable_x64(True):
        result = jax.ShapeDtypeStruct((count,), jnp.uint64)
        call = jax.ffi.ffi_call("gpu.Addresses", result)
        where = call(size=np.int64(size), alignment=np.int64(alignment))
        return [int(a) for a in np.asarray(where)]


def run_python(code: str, build: pathlib.Path, **environment: str) -> str:
    """What a program in a new process prints; argv[1] is the build folder."""
    command = [sys.executable, "-P", "-c", textwrap.dedent(code), build]
    return run(*command, env=environment).strip()
