"""Programs for test_gpu_graphs.py: what they begin with, and how they are run."""

import json
import pathlib
import textwrap
from typing import Any

from .conftest import run_python

PROGRAM = """
import collections, ctypes, functools, gc, json, os, sys, tempfile, threading, time
import warnings
import jax, jax.numpy as jnp, numpy as np
import jax_bfc

MIB = 1 << 20
kernels = ctypes.CDLL(sys.argv[1] + "/libkernels.so")
kernels.GraphCalls.restype = kernels.GraphAddresses.restype = ctypes.c_longlong
kernels.GraphAddresses.argtypes = [ctypes.c_longlong]
kernels.GraphSpoil.argtypes = [ctypes.c_size_t]
kernels.HoldClose.restype = ctypes.c_bool
device = jax.devices()[0]
STATE = jax.ShapeDtypeStruct((2,), jnp.uint32)

def capsule(symbol):
    return jax.ffi.pycapsule(getattr(kernels, symbol))

def check(what, got, wanted):
    if got != wanted:
        raise AssertionError(f"{what}: got {got!r}, wanted {wanted!r}")

def check_that(what, holds):
    if not holds:
        raise AssertionError(what)

def state(step):
    return jax.device_put(np.array([step, 0], np.uint32), device)

# A pause of None lasts until the gate of kernels/hold.h opens.
def layer(state, site, nbytes, target="graphs.Layer", pause_us=10):
    call = jax.ffi.ffi_call(target, STATE)
    return call(state, nbytes=np.int64(nbytes), site=np.int64(site),
                pause_ns=np.int64(-1 if pause_us is None else 1000 * pause_us))

# Programs out of call sites: (number, bytes) each.
def chain(sites, **options):
    def program(state):
        for site, nbytes in sites:
            state = layer(state, site, nbytes, **options)
        return state
    return jax.jit(program)

def branches(sites, **options):
    def program(state):
        ends = [layer(state, site, nbytes, **options) for site, nbytes in sites]
        return jnp.stack([ends[0][0], sum(end[1] for end in ends)])
    return jax.jit(program)

def right(program, step, times, operands=1):
    # Its results, with operands at several addresses in turn.
    states = [state(step) for _ in range(operands)]
    results = [program(s) for _ in range(times) for s in states]
    for i, result in enumerate(results):
        found = np.asarray(result).tolist()
        check(f"step and wrong words of run {i}", found, [step, 0])

def rounded(nbytes):
    return -(-nbytes // 256) * 256

def stats(key):
    return jax_bfc.memory_stats(device)[key]

def pinned(name):
    return jax_bfc.kernel_stats(device)[name].pinned_bytes

def drop_programs():
    jax.clear_caches()
    gc.collect()

def wait_until(what, condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        check_that(f"not within {seconds} s: {what}", time.monotonic() < end)
        time.sleep(0.01)

def stderr_of(function):
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            function()
        finally:
            os.dup2(kept, 2)
            file.seek(0)
            text = file.read().decode()
            sys.stderr.write(text)
    return text

jax_bfc.register_ffi_target("graphs.Layer", capsule("kGraphLayer"), platform="CUDA")
jax_bfc.configure(limit_bytes="1GiB", initial_bytes="2MiB")
"""


def run(code: str, build: pathlib.Path, *, mode: str = "LHS") -> dict[str, Any]:
    """What the program says in its last line."""
    output = run_python(
        PROGRAM + textwrap.dedent(code),
        build,
        XLA_FLAGS="--xla_gpu_graph_min_graph_size=1 "
        f"--xla_gpu_command_buffer_scheduling_mode={mode}",
        # Beside the process that runs the tests.
        XLA_PYTHON_CLIENT_MEM_FRACTION="0.1",
    )
    print(output)
    last: dict[str, Any] = json.loads(output.splitlines()[-1])
    return last
