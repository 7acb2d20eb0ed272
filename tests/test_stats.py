"""What is counted, given back and dropped."""

import ctypes
import dataclasses
import re
import threading
from collections.abc import Callable, Iterator

import jax
import pytest
from pools import LIMIT, MIB, fresh_pools, output_of, unchanged

import jax_bfc

# As jax.Device.memory_stats() documents them.
JAX_KEYS = {
    "num_allocs",
    "bytes_in_use",
    "peak_bytes_in_use",
    "largest_alloc_size",
    "bytes_limit",
    "bytes_reserved",
    "peak_bytes_reserved",
    "largest_free_block_bytes",
    "pool_bytes",
    "peak_pool_bytes",
}
OUR_KEYS = {
    "pinned_bytes",
    "pinned_for_life_bytes",
    "requested_bytes",
    "cached_bytes",
    "free_bytes",
    "address_bytes",
    "total_allocated_bytes",
    "num_live",
    "num_cache_hits",
    "num_failures",
    "num_growths",
    "num_trims",
}


@pytest.fixture(autouse=True)
def pools() -> Iterator[None]:
    with fresh_pools():
        yield


def check_identities() -> dict[str, int]:
    stats = jax_bfc.memory_stats()
    total = stats["bytes_in_use"] + stats["cached_bytes"] + stats["free_bytes"]
    assert total == stats["pool_bytes"]
    assert stats["requested_bytes"] <= stats["bytes_in_use"]
    assert stats["bytes_in_use"] <= stats["peak_bytes_in_use"]
    assert stats["pool_bytes"] <= stats["peak_pool_bytes"] <= stats["bytes_limit"]
    assert stats["pool_bytes"] <= stats["address_bytes"]
    return stats


def test_the_keys_are_those_of_jax_and_the_documented_ones() -> None:
    stats = jax_bfc.memory_stats()
    assert set(stats) == JAX_KEYS | OUR_KEYS
    assert all(type(value) is int for value in stats.values())
    assert jax_bfc.memory_stats.__doc__ is not None
    for key in stats:
        assert f"``{key}``" in jax_bfc.memory_stats.__doc__


def test_an_unused_pool_has_taken_nothing() -> None:
    stats = check_identities()
    assert stats.pop("bytes_limit") == LIMIT
    assert set(stats.values()) == {0}
    assert jax_bfc.last_oom_report() is None


def test_the_figures_of_one_allocation_are_exact() -> None:
    with jax_bfc.scratch(1000):
        stats = check_identities()
        assert stats["num_allocs"] == stats["num_live"] == 1
        assert stats["bytes_in_use"] == stats["peak_bytes_in_use"] == 1024
        assert stats["requested_bytes"] == stats["largest_alloc_size"] == 1000
        assert stats["pool_bytes"] == 2 * MIB
        assert stats["num_growths"] == 1
    stats = check_identities()
    assert stats["num_live"] == stats["bytes_in_use"] == stats["requested_bytes"] == 0
    assert stats["peak_bytes_in_use"] == stats["cached_bytes"] == 1024
    assert stats["total_allocated_bytes"] == 1000


def test_a_freed_chunk_is_found_in_the_cache_by_the_same_size() -> None:
    addresses = set()
    for _ in range(5):
        with jax_bfc.scratch(1000) as s:
            addresses.add(s.ptr)
    assert len(addresses) == 1
    assert check_identities()["num_cache_hits"] == 4


def test_peaks_start_anew_from_what_is_in_use() -> None:
    with jax_bfc.scratch(4096):
        with jax_bfc.scratch(8 * MIB):
            pass
        assert jax_bfc.memory_stats()["peak_bytes_in_use"] == 8 * MIB + 4096
        jax_bfc.reset_peak_memory_stats()
        stats = check_identities()
        assert stats["peak_bytes_in_use"] == 4096
        assert stats["peak_pool_bytes"] == stats["pool_bytes"]
        assert stats["largest_alloc_size"] == 0
        assert jax_bfc.kernel_stats()["(python)"].peak_bytes_in_use == 4096
        assert stats["num_allocs"] == 2


def test_identities_hold_after_threads_have_allocated() -> None:
    def work(seed: int) -> None:
        for i in range(200):
            with jax_bfc.scratch((seed * 7919 + i * 104729) % (64 << 10)) as s:
                memoryview(s)[:1] = b"x"[: min(1, s.nbytes)]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = check_identities()
    assert stats["num_allocs"] == 800
    assert stats["num_live"] == 0
    assert jax_bfc.kernel_stats()["(python)"].num_allocs == 800


def test_python_blocks_are_a_kernel_of_their_own() -> None:
    with jax_bfc.scratch(1000):
        row = jax_bfc.kernel_stats()["(python)"]
    assert row == jax_bfc.KernelStats(
        calls=1,
        num_allocs=1,
        bytes_in_use=1024,
        peak_bytes_in_use=1024,
        total_allocated_bytes=1000,
        largest_alloc_size=1000,
        pinned_bytes=0,
        num_failures=0,
        call_sites=0,
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.calls = 0  # type: ignore[misc]


def test_the_figures_of_a_kernel_print_one_on_a_line() -> None:
    with jax_bfc.scratch(3 << 20):
        lines = str(jax_bfc.kernel_stats()["(python)"]).splitlines()
    assert lines[0].split() == ["calls", "1"]
    assert lines[2].split() == ["bytes_in_use", "3,145,728", "(3.0", "MiB)"]
    assert len(lines) == len(dataclasses.fields(jax_bfc.KernelStats))


def test_trim_gives_back_what_is_wholly_free() -> None:
    with jax_bfc.scratch(1000), jax_bfc.scratch(16 * MIB):
        assert jax_bfc.trim() == 0
    before = check_identities()["pool_bytes"]
    assert jax_bfc.trim() == before
    stats = check_identities()
    assert stats["pool_bytes"] == 0
    assert stats["num_trims"] == stats["num_growths"] == 2
    assert jax_bfc.trim() == 0


def test_trim_takes_the_memory_out_of_the_process() -> None:
    code = """
        import resource
        import jax_bfc

        def resident():
            pages = int(open("/proc/self/statm").read().split()[1])
            return pages * resource.getpagesize()

        size = 64 << 20
        jax_bfc.memory_stats()
        before = resident()
        with jax_bfc.scratch(size) as s:
            memoryview(s)[:] = bytes(size)
        used = resident()
        given = jax_bfc.trim()
        # The system counts pages in batches, and JAX's threads use some meanwhile.
        back = used - resident()
        print(used - before >= 0.9 * size, given >= size, back >= 0.9 * size)
    """
    assert output_of(code) == "True True True"


def test_reset_is_refused_while_scratch_is_in_use() -> None:
    text = "jax_bfc.reset() while scratch is in use: 2 allocations"
    with jax_bfc.scratch(100), jax_bfc.scratch(200):
        jax_bfc.trim()  # so that refusing finds nothing in a cache
        with unchanged(), pytest.raises(RuntimeError, match=re.escape(text)):
            jax_bfc.reset()
    jax_bfc.reset()
    stats = check_identities()
    assert stats.pop("bytes_limit") == LIMIT
    assert set(stats.values()) == {0}
    assert all(row.num_allocs == 0 for row in jax_bfc.kernel_stats().values())


def test_a_pool_that_was_reset_serves_again() -> None:
    with jax_bfc.scratch(8 * MIB):
        pass
    jax_bfc.reset(jax.devices()[0])
    with jax_bfc.scratch(8 * MIB) as s:
        memoryview(s)[:] = bytes(8 * MIB)
        assert check_identities()["num_allocs"] == 1


@pytest.mark.parametrize(
    "function",
    [
        jax_bfc.get_config,
        jax_bfc.kernel_stats,
        jax_bfc.last_oom_report,
        jax_bfc.memory_stats,
        jax_bfc.reset,
        jax_bfc.reset_peak_memory_stats,
        jax_bfc.trim,
    ],
    ids=lambda function: str(function.__name__),
)
@pytest.mark.parametrize("device", ["cpu:x", 0, object(), jax.Device])
def test_a_device_of_the_wrong_type_is_refused(
    function: Callable[[object], object], device: object
) -> None:
    with unchanged(), pytest.raises(TypeError, match=r"valid: a jax\.Device such as"):
        function(device)


# ---------------------------------------------------------------------------
# FFI targets.


def capsule() -> object:
    make: Callable[[object], object] = jax.ffi.pycapsule
    return make(ctypes.CDLL(None).abort)


@pytest.mark.parametrize("platform", ["tpu", "CPU", "Cuda", "", "rocm"])
def test_an_unknown_platform_is_refused(platform: str) -> None:
    text = f"platform={platform!r}; valid: 'cpu', 'gpu', 'cuda', 'CUDA'"
    with pytest.raises(ValueError, match=re.escape(text)):
        jax_bfc.register_ffi_target("test_stats_a", capsule(), platform=platform)


@pytest.mark.parametrize("fn", [None, "abort", 3, lambda: None, {"execute": 3}])
def test_a_handler_that_is_no_capsule_is_refused(fn: object) -> None:
    with pytest.raises(TypeError, match=r"the execute handler is a .*; valid: a PyC"):
        jax_bfc.register_ffi_target("test_stats_b", fn)


def test_a_target_without_an_execute_handler_is_refused() -> None:
    text = r"fn has the stages \['prepare'\]; valid: those with 'execute'"
    with pytest.raises(ValueError, match=text):
        jax_bfc.register_ffi_target("test_stats_c", {"prepare": capsule()})


def test_the_untyped_ffi_is_refused() -> None:
    with pytest.raises(ValueError, match="api_version=0; valid: 1"):
        jax_bfc.register_ffi_target("test_stats_d", capsule(), api_version=0)


def test_a_target_name_that_is_no_text_is_refused() -> None:
    with pytest.raises(TypeError, match="name=7 is a int; valid: text"):
        jax_bfc.register_ffi_target(7, capsule())  # type: ignore[arg-type]
