"""CUDA handlers with scratch: results, statistics, limits, mistakes.

Operands and what results are compared with are kept on the host, where no fault of
the device's memory can change both alike.
"""

import concurrent.futures
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bfc

from .conftest import addresses, double

MIB = 1 << 20


def test_results_are_right_under_jit_and_vmap(pool: Any) -> None:
    x = np.arange(1 << 20, dtype=np.float32)
    for pause in (0, 200_000):
        call = jax.jit(lambda x, pause=pause: double(double(x, pause_ns=pause)))
        np.testing.assert_array_equal(call(x), 4 * x)
    np.testing.assert_array_equal(jax.vmap(double)(x.reshape(8, -1)).ravel(), 2 * x)


def test_statistics_name_the_kernel_and_have_the_keys_of_jax(pool: Any) -> None:
    jax.block_until_ready(double(jnp.ones(1000, jnp.float32)))
    stats = jax_bfc.memory_stats(pool)
    assert stats["num_allocs"] == 1
    assert stats["bytes_in_use"] == 0
    assert stats["largest_alloc_size"] == 4000
    assert stats["bytes_limit"] == 256 * MIB
    assert stats["pool_bytes"] == 2 * MIB
    of_jax = set(pool.memory_stats())
    # We set nothing aside, so there is no limit to that.
    assert of_jax - {"bytes_reservable_limit"} <= set(stats)
    row = jax_bfc.kernel_stats(pool)["gpu.Double"]
    assert (row.calls, row.num_allocs, row.peak_bytes_in_use) == (1, 1, 4096)


def test_a_handler_of_plain_jax_gets_scratch_too(pool: Any) -> None:
    x = np.ones(1000, np.float32)
    np.testing.assert_array_equal(double(x, target="gpu.Plain"), 2 * x)
    assert jax_bfc.kernel_stats(pool)["(unregistered)"].calls == 1


@pytest.mark.parametrize("alignment", [1, 256, 4096, 2 * MIB])
def test_blocks_of_a_call_are_apart_and_aligned(pool: Any, alignment: int) -> None:
    where = sorted(addresses(8, 1000, alignment))
    assert all(a % max(alignment, 256) == 0 for a in where)
    assert all(b - a >= 1000 for a, b in itertools.pairwise(where))


def test_the_same_call_gets_the_same_address(pool: Any) -> None:
    first = addresses(1, 100_000)
    assert [addresses(1, 100_000) for _ in range(5)] == [first] * 5


@pytest.mark.parametrize("alignment", [0, 3, 4 * MIB])
def test_a_bad_alignment_is_refused(pool: Any, alignment: int) -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match="powers of two up to"):
        addresses(1, 1000, alignment)


def test_a_negative_size_is_refused(pool: Any) -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match="the valid sizes are 0 to"):
        addresses(1, -1)


def test_past_the_limit_the_report_says_who_and_the_pool_goes_on(pool: Any) -> None:
    text = r"RESOURCE_EXHAUSTED: .*kernel 'gpu.Addresses' on cuda:0 asked for"
    with pytest.raises(jax.errors.JaxRuntimeError, match=text):
        addresses(1, 256 * MIB + 1)
    report = jax_bfc.last_oom_report(pool)
    assert report is not None
    assert "larger than the limit" in report
    assert addresses(1, 200 * MIB)
    assert jax_bfc.kernel_stats(pool)["gpu.Addresses"].num_failures == 1


@pytest.mark.parametrize("source", ["cuda_vmm", "cuda"])
def test_both_sources_serve_and_give_back(pool: Any, source: str) -> None:
    jax_bfc.configure(source=source)
    assert jax_bfc.get_config(pool).source == source
    x = np.arange(10 * MIB, dtype=np.float32)
    np.testing.assert_array_equal(double(x), 2 * x)
    mapped = jax_bfc.memory_stats(pool)["pool_bytes"]
    assert mapped >= 40 * MIB
    assert jax_bfc.trim(pool) == mapped
    assert jax_bfc.memory_stats(pool)["pool_bytes"] == 0
    np.testing.assert_array_equal(double(x), 2 * x)


def test_the_source_cannot_change_while_scratch_is_in_use(pool: Any) -> None:
    with jax_bfc.scratch(1000, device=pool):
        text = "the source of cuda:0 cannot change while scratch is in use"
        with pytest.raises(ValueError, match=text):
            jax_bfc.configure(source="cuda")
        assert jax_bfc.get_config(pool).source == "auto"
    with pytest.raises(ValueError, match="valid: 'auto', 'cuda_vmm', 'cuda'"):
        jax_bfc.configure(source="host", device=pool)


def test_a_limit_below_what_is_in_use_is_refused(pool: Any) -> None:
    with (
        jax_bfc.scratch(64 * MIB, device=pool),
        pytest.raises(ValueError, match=r"below the .* bytes that scratch in use"),
    ):
        jax_bfc.configure(limit_bytes=32 * MIB, device=pool)
    jax_bfc.configure(limit_bytes=32 * MIB, device=pool)
    assert jax_bfc.memory_stats(pool)["pool_bytes"] <= 32 * MIB


def test_the_limit_is_of_the_whole_card_and_a_shortfall_is_told(pool: Any) -> None:
    from jax_bfc import _core

    _, total, _ = _core.cuda_memory(0)
    with pytest.warns(UserWarning, match="XLA_CLIENT_MEM_FRACTION"):
        jax_bfc.configure(memory_fraction=1.0)
    assert jax_bfc.get_config(pool).limit_bytes == total
    # What is free is asked for at each growth; the limit stays what was asked for.
    assert jax_bfc.memory_stats(pool)["bytes_limit"] == total
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        addresses(1, total - 256 * MIB)
    # The context goes on.
    x = np.arange(1000, dtype=np.float32)
    np.testing.assert_array_equal(double(x), 2 * x)


def test_scratch_in_many_threads_at_once(pool: Any) -> None:
    def work(seed: int) -> bool:
        random = np.random.default_rng(seed)
        x = random.standard_normal(100_000 + 1000 * seed).astype(np.float32)
        call = jax.jit(lambda x: double(double(x, pause_ns=50_000)))
        return all(np.array_equal(call(x), 4 * x) for _ in range(20))

    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        assert all(threads.map(work, range(32)))
    assert jax_bfc.memory_stats(pool)["bytes_in_use"] == 0


def test_reset_drops_everything(pool: Any) -> None:
    jax.block_until_ready(double(jnp.ones(1000, jnp.float32)))
    jax_bfc.reset(pool)
    stats = jax_bfc.memory_stats(pool)
    assert stats["pool_bytes"] == stats["num_allocs"] == stats["address_bytes"] == 0


def test_the_pool_of_the_cpu_is_another(pool: Any) -> None:
    cpu = jax.local_devices(backend="cpu")[0]
    with jax_bfc.scratch(1000, device=cpu) as s:
        assert s.__dlpack_device__() == (1, 0)
        assert jax_bfc.memory_stats(cpu)["num_live"] == 1
        assert jax_bfc.memory_stats(pool)["num_live"] == 0
