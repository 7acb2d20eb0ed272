"""CUDA kernels, built once a session as an outside author would."""

import contextlib
import ctypes
import os
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
    """The folder with libkernels.so and libdriver_shim.so.

    JAX_BFC_GPU_TEST_BUILD keeps it from one session to the next.
    """
    kept = os.environ.get("JAX_BFC_GPU_TEST_BUILD")
    folder = pathlib.Path(kept) if kept else tmp_path_factory.mktemp("gpu_kernels")
    root = HERE.parent.parent
    build_kernels(HERE / "kernels", folder, f"-DJAX_BFC_SOURCE_DIR={root / 'src'}")
    return folder


@pytest.fixture(scope="session")
def library(build: pathlib.Path) -> Any:
    loaded = ctypes.CDLL(str(build / "libkernels.so"))
    for name in ("Double", "DoubleGraph", "Addresses"):
        handler = jax.ffi.pycapsule(getattr(loaded, f"k{name}"))
        jax_bfc.register_ffi_target(f"gpu.{name}", handler, platform="CUDA")
    loaded.HoldClose.restype = ctypes.c_bool
    loaded.HoldStream.argtypes = [ctypes.c_void_p]
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


@contextlib.contextmanager
def held(library: Any, stream: Any) -> Iterator[None]:
    """A stream of PyTorch that is busy, until the block or HoldOpen() ends that."""
    assert library.HoldClose(), "no memory for the gate"
    try:
        assert library.HoldStream(stream.cuda_stream) == 0
        yield
    finally:
        library.HoldOpen(0)


def stress(library: Any, *, device: int, seconds: float, threads: int) -> None:
    """Traffic of threads with streams of their own; every word of it is verified."""
    seed = int.from_bytes(os.urandom(4), "little")
    result = (ctypes.c_longlong * 3)()
    failed = library.Stress(
        device,
        ctypes.c_double(seconds),
        threads,
        ctypes.c_uint64(seed),
        ctypes.c_size_t(16 << 20),
        ctypes.byref(result),
    )
    blocks, wrong, refused = result
    print(f"seed {seed}: {blocks:,} blocks, {wrong} words wrong, {refused:,} refused")
    assert (failed, wrong) == (0, 0), f"seed {seed}"
    assert blocks > 1000


def run_python(code: str, build: pathlib.Path, **environment: str) -> str:
    """What a program in a new process prints; argv[1] is the build folder."""
    command = [sys.executable, "-P", "-c", textwrap.dedent(code), build]
    return run(*command, env=environment).strip()
