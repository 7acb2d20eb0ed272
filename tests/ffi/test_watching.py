"""What handlers do is seen: peaks, recordings, callbacks, on XLA's threads."""

import concurrent.futures
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from pools import profiled_ranges

import jax_bfc

from .conftest import Kernels

pytestmark = pytest.mark.usefixtures("fresh_pools")


def test_a_peak_names_the_handlers_that_held_it(kernels: Kernels) -> None:
    double = jax.jit(kernels.double("test.Double"))
    with jax_bfc.peak() as p:
        double(jnp.ones(1000)).block_until_ready()
    assert p.bytes == 4096
    assert p.by_kernel == {"test.Double": 4096}


def test_a_recording_has_kernel_and_label(kernels: Kernels, tmp_path: Path) -> None:
    everything = jax.jit(kernels.double("test.Everything"))
    with jax_bfc.record(tmp_path / "a.csv") as r:
        everything(jnp.ones(1000)).block_until_ready()
    events = r.events
    allocated = events[events["kind"] == r.KINDS.index("allocate")]
    freed = events[events["kind"] == r.KINDS.index("free")]
    assert len(allocated) == len(freed) == 11
    names = {r.kernels[kernel] for kernel in allocated["kernel"]}
    assert names == {("test.Everything", ""), ("test.Everything", "labelled")}


def test_a_profile_has_every_handlers_scratch(kernels: Kernels, tmp_path: Path) -> None:
    everything = jax.jit(kernels.double("test.Everything"))
    x = jnp.ones(1000)
    everything(x).block_until_ready()
    with (
        jax.profiler.trace(tmp_path),
        jax_bfc.annotate(),
        concurrent.futures.ThreadPoolExecutor(4) as threads,
    ):
        for result in threads.map(everything, [x] * 20):
            result.block_until_ready()
    ranges = profiled_ranges(tmp_path)
    assert len(ranges) == 20 * 11
    assert {name for name, _ in ranges} == {
        "scratch test.Everything",
        "scratch test.Everything:labelled",
    }


def test_a_callback_frees_what_a_handler_needs(kernels: Kernels) -> None:
    double: Any = jax.jit(kernels.double("test.Double"))
    x = jnp.ones(8 << 20, jnp.float32)  # half of the limit below
    reports = []
    jax_bfc.configure(limit_bytes="64MiB")
    try:
        with jax_bfc.scratch(48 << 20) as held:

            def free(report: str) -> None:  # on a thread of XLA's
                reports.append(report)
                held.close()

            handle = jax_bfc.on_oom(free)
            try:
                assert float(double(x)[-1]) == 2
            finally:
                handle.remove()
    finally:
        jax_bfc.configure(memory_fraction=0.8)
    assert len(reports) == 1
    assert "kernel 'test.Double' on cpu:0" in reports[0]
    assert jax_bfc.kernel_stats()["test.Double"].num_failures == 0
