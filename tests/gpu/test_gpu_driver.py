"""What is asked of the driver, and what happens when it refuses."""

import os
import pathlib
from typing import Any

import jax_bfc

from .conftest import run_python, stress

MIB = 1 << 20

PROGRAM = """
    import ctypes, os, sys
    import jax, jax.numpy as jnp, numpy as np
    import jax_bfc
    shim = ctypes.CDLL(os.environ["JAX_BFC_LIBCUDA"])
    shim.ShimCalls.restype = shim.ShimDone.restype = ctypes.c_longlong
    shim.ShimFail.argtypes = [ctypes.c_longlong, ctypes.c_int]
    def calls(name=""):
        return shim.ShimCalls(name.encode())
    kernels = ctypes.CDLL(sys.argv[1] + "/libkernels.so")
    for name in ("Double", "DoubleGraph"):
        handler = jax.ffi.pycapsule(getattr(kernels, "k" + name))
        jax_bfc.register_ffi_target(name, handler, platform="CUDA")
    jax_bfc.configure(limit_bytes="256MiB")
    x = np.arange(1 << 20, dtype=np.float32)
    def double(x, target="Double"):
        result = jax.ShapeDtypeStruct(x.shape, jnp.float32)
        return jax.ffi.ffi_call(target, result)(x, pause_ns=np.int64(0))
    call = jax.jit(double, static_argnums=1)
"""


def shimmed(code: str, build: pathlib.Path) -> str:
    shim = str(build / "libdriver_shim.so")
    return run_python(PROGRAM + code, build, JAX_BFC_LIBCUDA=shim)


def test_a_call_asks_for_the_streams_id_and_whether_it_is_captured(
    build: pathlib.Path,
) -> None:
    code = """
    for target in ("Double", "DoubleGraph"):
        for _ in range(3):
            jax.block_until_ready(call(x, target))
        before = calls(), calls("cuStreamGetId"), calls("cuStreamIsCapturing")
        for _ in range(100):
            jax.block_until_ready(call(x, target))
        after = calls(), calls("cuStreamGetId"), calls("cuStreamIsCapturing")
        print(*[b - a for a, b in zip(before, after)])
    """
    lines = shimmed(code, build).splitlines()
    # A handler that can be in no graph need not ask whether it is.
    assert lines[0].split() == ["100", "100", "0"]
    assert lines[1].split() == ["200", "100", "100"]


def test_each_call_of_the_driver_may_fail_once(build: pathlib.Path) -> None:
    code = """
    import gc
    device = jax.devices()[0]
    def everything():
        # Growth, two lanes, trimming, a change of source, a reset.
        np.testing.assert_array_equal(call(x), 2 * x)
        with jax_bfc.scratch(40 << 20, device=device):
            pass
        with jax_bfc.scratch(300 << 18, device=device, stream=1):
            pass
        jax_bfc.trim(device)
        np.testing.assert_array_equal(call(x), 2 * x)
    def again(source):
        jax_bfc.reset(device)
        jax_bfc.configure(source=source)
    for source in ("cuda_vmm", "cuda"):
        again(source)
        everything(); again(source); everything()  # what happens once is done
        again(source)
        before = calls()
        everything(); again(source)
        count = calls() - before
        errors = 0
        for n in range(1, count + 1):
            shim.ShimFail(n, 2)
            try:
                everything()
            except (jax.errors.JaxRuntimeError, jax_bfc.OutOfMemoryError) as e:
                text = str(e)
                assert "jax_bfc" in text, text
                errors += 1
            except RuntimeError as e:
                assert "jax_bfc" in str(e), e
                errors += 1
            shim.ShimFail(0, 0)
            gc.collect()
            again(source)
            everything()
            again(source)
        print(source, count, errors)
        assert count > 20 and errors > 0
    # Each that took something has its counterpart.
    for takes, gives in (
        ("cuMemCreate", "cuMemRelease"),
        ("cuMemMap", "cuMemUnmap"),
        ("cuMemAddressReserve", "cuMemAddressFree"),
        ("cuMemAlloc", "cuMemFree"),
    ):
        taken, given = (shim.ShimDone(name.encode()) for name in (takes, gives))
        # What the next wait for the device takes is there beforehand.
        kept = 1 if takes == "cuMemAlloc" else 0
        assert taken == given + kept > kept, (takes, taken, given)
    print("done")
    """
    assert shimmed(code, build).endswith("done")


def test_a_driver_that_is_missing_is_told(build: pathlib.Path) -> None:
    code = """
    import jax, jax_bfc
    try:
        with jax_bfc.scratch(1000, device=jax.devices()[0]):
            pass
    except RuntimeError as error:
        print(error)
    """
    text = run_python(code, build, JAX_BFC_LIBCUDA="/nowhere/libcuda.so.1")
    assert "there is no CUDA driver (/nowhere/libcuda.so.1" in text


def test_a_forked_child_is_told_that_cuda_is_not_there(build: pathlib.Path) -> None:
    code = """
    import os, warnings
    jax.block_until_ready(call(x))
    device = jax.devices()[0]
    s = jax_bfc.scratch(1000, device=device)
    s.__enter__()
    before = calls()
    warnings.simplefilter("ignore")
    child = os.fork()
    if child == 0:
        try:
            s.__exit__(None, None, None)  # the parent's: nothing happens
            try:
                with jax_bfc.scratch(1000, device=device):
                    os._exit(1)
            except RuntimeError as error:
                ok = "forked" in str(error) and calls() == before
                os._exit(0 if ok else 2)
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    s.__exit__(None, None, None)
    assert jax_bfc.memory_stats(device)["num_live"] == 0
    print("done")
    """
    assert shimmed(code, build).endswith("done")


def test_random_traffic_from_threads_and_streams_keeps_every_pattern(
    pool: Any, library: Any
) -> None:
    """JAX_BFC_STRESS_SECONDS says for how long; all of it is verified."""
    seconds = float(os.environ.get("JAX_BFC_STRESS_SECONDS", "20"))
    # So little that the threads take one another's memory all the time.
    jax_bfc.configure(limit_bytes=96 * MIB, device=pool)
    stress(library, device=0, seconds=seconds, threads=8)
    assert jax_bfc.memory_stats(pool)["num_trims"] > 0
    assert jax_bfc.memory_stats(pool)["num_live"] == 0
