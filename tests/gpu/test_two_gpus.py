"""Two devices: a pool each, programs over both, and a process for each of them."""

import concurrent.futures
import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jax_bfc

from .conftest import double, stress

MIB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def two_gpus(gpu: None) -> None:
    if (count := len(jax.local_devices())) < 2:
        pytest.skip(f"needs two GPUs: JAX has {count} here")


@pytest.fixture
def pools(pool: Any) -> list[Any]:
    """Two devices, as `pool` leaves them."""
    return list(jax.local_devices()[:2])


@contextlib.contextmanager
def on(device: Any) -> Iterator[None]:
    with jax.default_device(device):
        yield


def test_threads_on_both_devices_keep_every_word(
    pools: list[Any], library: Any
) -> None:
    for device in pools:
        jax_bfc.configure(limit_bytes=96 * MIB, device=device)
    with concurrent.futures.ThreadPoolExecutor(2) as both:
        runs = [
            both.submit(stress, library, device=i, seconds=10, threads=4)
            for i in range(2)
        ]
        for run in runs:
            run.result()
    for device in pools:
        stats = jax_bfc.memory_stats(device)
        assert stats["num_trims"] > 0
        assert stats["num_live"] == 0
        assert stats["pool_bytes"] <= 96 * MIB


def test_handlers_in_threads_on_both_devices(pools: list[Any]) -> None:
    def work(seed: int) -> bool:
        random = np.random.default_rng(seed)
        x = random.standard_normal(100_000 + 1000 * seed).astype(np.float32)
        with on(pools[seed % 2]):
            call = jax.jit(lambda x: double(double(x, pause_ns=50_000)))
            return all(np.array_equal(call(x), 4 * x) for _ in range(20))

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(16)))
    for device in pools:
        assert jax_bfc.kernel_stats(device)["gpu.Double"].calls == 8 * 20 * 2
        assert jax_bfc.memory_stats(device)["bytes_in_use"] == 0


def test_statistics_and_settings_are_by_device(pools: list[Any]) -> None:
    first, second = pools
    jax_bfc.configure(limit_bytes=32 * MIB, device=second)
    assert jax_bfc.get_config(first).limit_bytes == 256 * MIB
    assert jax_bfc.get_config(second).limit_bytes == 32 * MIB
    with on(second):
        x = np.arange(1000, dtype=np.float32)
        np.testing.assert_array_equal(double(x), 2 * x)
    assert jax_bfc.memory_stats(first)["num_allocs"] == 0
    assert jax_bfc.memory_stats(second)["num_allocs"] == 1
    assert jax_bfc.memory_stats(second)["bytes_limit"] == 32 * MIB
    with jax_bfc.scratch(64 * MIB, device=first) as s:
        assert s.__dlpack_device__() == (2, 0)
        with (
            pytest.raises(jax_bfc.OutOfMemoryError, match="on cuda:1 asked for"),
            jax_bfc.scratch(64 * MIB, device=second),
        ):
            pass
        with jax_bfc.scratch(1000, device=second) as t:
            assert t.__dlpack_device__() == (2, 1)
    assert jax_bfc.last_oom_report(first) is None
    # What was set for one stays when something else is set for all.
    jax_bfc.configure(growth_factor=1.5)
    assert jax_bfc.get_config(second).limit_bytes == 32 * MIB
    mapped = jax_bfc.memory_stats(first)["pool_bytes"]
    assert jax_bfc.trim(second) > 0
    assert jax_bfc.memory_stats(first)["pool_bytes"] == mapped


def test_one_program_over_both_devices(pools: list[Any]) -> None:
    mesh = Mesh(np.array(pools), ("x",))
    rows = PartitionSpec("x")
    x = np.random.default_rng(0).standard_normal((64, 10_000)).astype(np.float32)

    def body(part: Any) -> Any:
        return double(double(part, pause_ns=100_000)) + jax.lax.psum(0 * part, "x")

    call = jax.jit(
        jax.shard_map(body, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    )
    operand = jax.device_put(x, NamedSharding(mesh, rows))
    for _ in range(20):
        np.testing.assert_array_equal(call(operand), 4 * x)
    for device in pools:
        assert jax_bfc.kernel_stats(device)["gpu.Double"].calls == 2 * 20
        assert jax_bfc.memory_stats(device)["bytes_in_use"] == 0


def test_scratch_of_one_device_reaches_the_other_as_a_copy(pools: list[Any]) -> None:
    """As docs/gpu.md says, since it is mapped for its own device only."""
    torch = pytest.importorskip("torch")
    for device, other in (pools, pools[::-1]):
        with jax_bfc.scratch(4000, device=device) as s:
            view = torch.from_dlpack(s)
            view.copy_(torch.arange(4000) % 100)
            torch.cuda.synchronize(view.device)
            copy = jnp.from_dlpack(s).copy()
            moved = jax.device_put(copy, other)
            assert moved.devices() == {other}
            np.testing.assert_array_equal(np.asarray(moved), np.arange(4000) % 100)
            del view, copy, moved


PROCESS = """
    import ctypes, sys
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    import jax_bfc

    folder, address, number, ids = sys.argv[1:]
    number = int(number)
    jax.distributed.initialize(
        address, num_processes=2, process_id=number,
        local_device_ids=[int(i) for i in ids.split(",")])
    kernels = ctypes.CDLL(folder + "/libkernels.so")
    for platform, symbol in (("CUDA", "kDouble"), ("cpu", "kDoubleCpu")):
        handler = jax.ffi.pycapsule(getattr(kernels, symbol))
        jax_bfc.register_ffi_target("Double", handler, platform=platform)
    jax_bfc.configure(limit_bytes="64MiB")

    def double(x):
        call = jax.ffi.ffi_call("Double", jax.ShapeDtypeStruct(x.shape, x.dtype))
        return call(x, pause_ns=np.int64(0))

    assert len(jax.devices()) == 2, jax.devices()
    (gpu,) = jax.local_devices()
    cpu = jax.local_devices(backend="cpu")[0]
    x = np.arange(50_000, dtype=np.float32) + number
    for device in (gpu, cpu):
        with jax.default_device(device):
            call = jax.jit(double)
            for _ in range(3):
                got = call(x)
                assert got.devices() == {device}, got.devices()
                np.testing.assert_array_equal(np.asarray(got), 2 * x)
        assert jax_bfc.kernel_stats(device)["Double"].calls == 3, device
        assert jax_bfc.memory_stats(device)["num_allocs"] == 3, device
        assert jax_bfc.memory_stats(device)["bytes_limit"] == 64 << 20, device
        with jax_bfc.scratch(1000, device=device):
            assert jax_bfc.memory_stats(device)["num_live"] == 1, device

    # One program of both processes.
    mesh = Mesh(np.array(jax.devices()), ("x",))
    rows = PartitionSpec("x")
    body = lambda part: double(part) + jax.lax.psum(part, "x")
    step = jax.jit(jax.shard_map(
        body, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False))
    whole = np.arange(2 * 4096, dtype=np.float32)
    parts = whole.reshape(2, -1)
    operand = jax.make_array_from_callback(
        whole.shape, NamedSharding(mesh, rows), lambda index: whole[index])
    for _ in range(5):
        (shard,) = step(operand).addressable_shards
        mine = shard.index[0].start // 4096
        wanted = 2 * parts[mine] + parts.sum(0)
        np.testing.assert_array_equal(np.asarray(shard.data), wanted)
    assert jax_bfc.kernel_stats(gpu)["Double"].calls == 8
    print("right in process", number, "on", gpu, "and", cpu)
    jax.distributed.shutdown()
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.parametrize("shown", ["both", "one"])
def test_a_process_for_each_device(
    build: pathlib.Path, tmp_path: pathlib.Path, shown: str
) -> None:
    """Each is shown both devices and takes one, or is shown one only."""
    address = f"127.0.0.1:{free_port()}"
    running = []
    for number in range(2):
        environment = os.environ | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.1"}
        ids = str(number)
        if shown == "one":
            environment["CUDA_VISIBLE_DEVICES"] = str(number)
            ids = "0"
        code = textwrap.dedent(PROCESS)
        command = [sys.executable, "-P", "-c", code, str(build), address]
        command += [str(number), ids]
        # Into files: a pipe that nobody reads would stop the one that fills it.
        with (tmp_path / f"{number}.txt").open("w") as output:
            running.append(
                subprocess.Popen(
                    command, env=environment, stdout=output, stderr=subprocess.STDOUT
                )
            )
    try:
        for process in running:
            process.wait(timeout=150)
    finally:
        for process in running:
            process.kill()
            process.wait()
    for number, process in enumerate(running):
        output_text = (tmp_path / f"{number}.txt").read_text()
        assert process.returncode == 0, output_text
        assert f"right in process {number}" in output_text
