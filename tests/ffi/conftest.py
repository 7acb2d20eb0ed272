"""Builds the test kernels once a session, as an outside author would."""

import ctypes
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from pools import build_kernels, run

import jax_bfc

HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Kernels:
    """The built libraries, and targets registered from them."""

    build: pathlib.Path

    def capsule(self, symbol: str, library: str = "kernels") -> Any:
        loaded = ctypes.CDLL(str(self.build / f"lib{library}.so"))
        return jax.ffi.pycapsule(getattr(loaded, symbol))

    def double(self, target: str) -> Callable[[Any], Any]:
        """``2 * x`` by the handler registered as `target`."""

        def call(x: Any) -> Any:
            result = jax.ShapeDtypeStruct(x.shape, jnp.float32)
            return jax.ffi.ffi_call(target, result, vmap_method="sequential")(x)

        return call


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    build = tmp_path_factory.mktemp("kernels")
    build_kernels(HERE / "kernels", build)
    kernels = Kernels(build)
    for name in ("Double", "Addresses", "Async", "Everything"):
        jax_bfc.register_ffi_target(f"test.{name}", kernels.capsule(f"k{name}"))
    return kernels


@pytest.fixture
def fresh_pools() -> Iterator[None]:
    """Empty pools before, and nothing left in use after."""
    jax.clear_caches()
    jax_bfc.reset()
    yield
    jax_bfc.reset()


@pytest.fixture
def run_python(kernels: Kernels) -> Callable[..., str]:
    """Runs a program in a new process that finds the kernels in argv[1]."""

    def run_program(program: str, **environment: str) -> str:
        return run(
            sys.executable,
            "-c",
            program,
            kernels.build,
            env={"JAX_PLATFORMS": "cpu", **environment},
            cwd=kernels.build,  # where no source folder hides the package
        )

    return run_program
