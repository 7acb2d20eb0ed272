"""jax_bfc.scratch(): what it takes, what it gives, and how long it lasts."""

import gc
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pools import LIMIT, MIB, fresh_pools, live, unchanged

import jax_bfc
from jax_bfc import _core


@pytest.fixture(autouse=True)
def pools() -> Iterator[None]:
    with fresh_pools():
        yield


# ---------------------------------------------------------------------------
# What it takes.


@pytest.mark.parametrize("size", [-1, -(2**63), 2**47 + 1, 2**63, 2**64, 10**30])
def test_a_size_out_of_range_is_refused(size: int) -> None:
    text = f"nbytes={size}; valid: 0 to {_core.MAX_REQUEST}"
    with unchanged(), pytest.raises(ValueError, match=re.escape(text)):
        jax_bfc.scratch(size)


@pytest.mark.parametrize("size", [1.5, None, b"1", [1]])
def test_a_size_that_is_no_int_is_refused(size: Any) -> None:
    with unchanged(), pytest.raises(TypeError, match=r"nbytes=.* is a .*; valid: an"):
        jax_bfc.scratch(size)


@pytest.mark.parametrize("alignment", [0, -256, 3, 300, (2 << 20) + 1, 4 << 20, 2**63])
def test_an_alignment_that_is_not_valid_is_refused(alignment: int) -> None:
    text = f"alignment={alignment}; valid: a power of two up to 2097152"
    with unchanged(), pytest.raises(ValueError, match=re.escape(text)):
        jax_bfc.scratch(1, alignment=alignment)


def test_an_alignment_that_is_no_int_is_refused() -> None:
    with unchanged(), pytest.raises(TypeError, match="alignment='4k' is a str; valid"):
        jax_bfc.scratch(1, alignment="4k")  # type: ignore[arg-type]


def test_a_stream_is_refused_on_cpu() -> None:
    with unchanged(), pytest.raises(ValueError, match="stream=7; valid on CPU: None"):
        jax_bfc.scratch(1, stream=7)


@pytest.mark.parametrize("device", ["cpu", 0, object()])
def test_a_device_of_the_wrong_type_is_refused(device: object) -> None:
    with unchanged(), pytest.raises(TypeError, match=r"valid: a jax\.Device such as"):
        jax_bfc.scratch(1, device=device)


def test_an_unknown_key_is_refused() -> None:
    with unchanged(), pytest.raises(TypeError, match="align"):
        jax_bfc.scratch(1, align=256)  # type: ignore[call-arg]


def test_a_size_may_be_text() -> None:
    with jax_bfc.scratch("1MiB") as s:
        assert s.nbytes == MIB
    with unchanged(), pytest.raises(ValueError, match="nbytes='4 parsecs'; valid"):
        jax_bfc.scratch("4 parsecs")


def test_nothing_is_allocated_before_the_block_is_entered() -> None:
    with unchanged():
        jax_bfc.scratch(MIB)


# ---------------------------------------------------------------------------
# What it gives.


def test_zero_bytes_are_a_good_size() -> None:
    with jax_bfc.scratch(0) as a, jax_bfc.scratch(0) as b:
        assert a.nbytes == 0
        assert a.ptr != 0
        assert a.ptr != b.ptr
        assert len(memoryview(a)) == 0
        assert np.from_dlpack(a).shape == (0,)
        assert live() == 2


@pytest.mark.parametrize("power", range(22))
def test_addresses_are_aligned_as_asked(power: int) -> None:
    with (
        jax_bfc.scratch(100, alignment=1 << power) as a,
        jax_bfc.scratch(100, alignment=1 << power, device=jax.devices()[0]) as b,
    ):
        for s in (a, b):
            assert s.ptr % max(256, 1 << power) == 0
        assert abs(a.ptr - b.ptr) >= 256


def test_numpy_ints_are_good_sizes() -> None:
    size: Any = np.int64(12)
    alignment: Any = np.uint16(512)
    with jax_bfc.scratch(size, alignment=alignment) as s:
        assert s.nbytes == 12
        assert s.ptr % 512 == 0


def test_a_memoryview_is_of_the_memory() -> None:
    with jax_bfc.scratch(1000) as s, memoryview(s) as view:
        assert (view.format, view.shape, view.readonly) == ("B", (1000,), False)
        view[:] = bytes(range(250)) * 4
        assert np.frombuffer(memoryview(s), np.uint8)[501] == 1
        array = np.frombuffer(memoryview(s), np.float32)
        assert array.ctypes.data == s.ptr


def test_numpy_takes_it_by_dlpack_without_a_copy() -> None:
    with jax_bfc.scratch(1000) as s:
        array = np.from_dlpack(s)
        assert array.dtype == np.uint8
        assert array.shape == (1000,)
        assert array.flags.writeable
        assert array.ctypes.data == s.ptr
        array[:] = 7
        assert bytes(memoryview(s)[:3]) == b"\7\7\7"


def test_jax_takes_it_by_dlpack_without_a_copy() -> None:
    with jax_bfc.scratch(4096) as s:
        memoryview(s)[:] = b"\3" * 4096
        array = jax.dlpack.from_dlpack(s)
        assert (array.dtype, array.shape) == (jnp.uint8, (4096,))
        assert array.unsafe_buffer_pointer() == s.ptr
        assert int(jnp.sum(array.astype(jnp.int32))) == 3 * 4096


def test_a_consumer_may_ask_for_a_copy() -> None:
    with jax_bfc.scratch(1000) as s:
        memoryview(s)[:] = b"\3" * 1000
        array = np.from_dlpack(s, copy=True)
        memoryview(s)[:] = b"\4" * 1000
        assert array.ctypes.data != s.ptr
        assert np.from_dlpack(s, copy=False).ctypes.data == s.ptr
    assert live() == 0
    assert (array == 3).all()


def test_its_dlpack_device_is_the_cpu() -> None:
    with jax_bfc.scratch(1) as s:
        assert s.__dlpack_device__() == (1, 0)


# ---------------------------------------------------------------------------
# How long it lasts.


def test_leaving_the_block_frees() -> None:
    with jax_bfc.scratch(100):
        assert live() == 1
    assert live() == 0


def test_an_exception_in_the_block_frees() -> None:
    with pytest.raises(KeyError, match="mine"), jax_bfc.scratch(100):
        raise KeyError("mine")
    assert live() == 0


def test_using_it_after_the_block_is_an_error() -> None:
    with jax_bfc.scratch(100) as s:
        pass
    text = "used after its with block ended; what is to live longer must be exported"
    with pytest.raises(ValueError, match=text):
        _ = s.ptr
    with pytest.raises(ValueError, match=text):
        s.__dlpack__()
    with pytest.raises(ValueError, match=text):
        np.from_dlpack(s)
    with pytest.raises(BufferError, match="exported after its with block ended"):
        memoryview(s)
    assert s.nbytes == 100


def test_a_memoryview_outlives_the_block_and_delays_the_free() -> None:
    with jax_bfc.scratch(100) as s:
        view = memoryview(s)
        view[:] = b"a" * 100
    assert live() == 1
    with jax_bfc.scratch(100) as other:
        memoryview(other)[:] = b"b" * 100
    assert bytes(view) == b"a" * 100
    view.release()
    assert live() == 0


def test_an_array_made_by_dlpack_outlives_the_block_and_delays_the_free() -> None:
    with jax_bfc.scratch(400) as s:
        array = np.from_dlpack(s)
        array[:] = 5
    part = array[100:200].view(np.int32)
    del array
    assert live() == 1
    with jax_bfc.scratch(400) as other:
        np.from_dlpack(other)[:] = 6
    assert part.tolist() == [0x05050505] * 25
    del part
    assert live() == 0


def test_a_jax_array_outlives_the_block_and_delays_the_free() -> None:
    with jax_bfc.scratch(4096) as s:
        memoryview(s)[:] = b"\3" * 4096
        array = jax.dlpack.from_dlpack(s)
    assert live() == 1
    assert int(array[4095]) == 3
    del array
    gc.collect()
    assert live() == 0


def test_a_capsule_that_nobody_takes_frees() -> None:
    with jax_bfc.scratch(400) as s:
        capsule = s.__dlpack__()
    assert live() == 1
    del capsule
    assert live() == 0


def test_the_last_of_several_exports_frees() -> None:
    with jax_bfc.scratch(400) as s:
        exports: list[Any] = [
            memoryview(s),
            np.from_dlpack(s),
            np.frombuffer(memoryview(s)),
        ]
    del s
    while exports:
        assert live() == 1
        exports.pop(0)
    assert live() == 0


def test_the_object_alone_does_not_delay_the_free() -> None:
    with jax_bfc.scratch(400) as s:
        assert s.nbytes == 400
    assert live() == 0


def test_blocks_nest() -> None:
    with jax_bfc.scratch(300) as a:
        with jax_bfc.scratch(300) as b:
            assert abs(a.ptr - b.ptr) >= 512
            assert live() == 2
        assert live() == 1
        assert a.ptr
    assert live() == 0


# ---------------------------------------------------------------------------
# Out of memory.


def test_past_the_limit_is_an_error_with_the_figures() -> None:
    with jax_bfc.scratch(LIMIT // 4):
        block = jax_bfc.scratch(LIMIT)
        with pytest.raises(jax_bfc.OutOfMemoryError) as caught, block:
            pass
    error = caught.value
    assert isinstance(error, MemoryError)
    assert error.requested == error.limit == LIMIT
    assert error.in_use == LIMIT // 4
    assert 0 <= error.largest_free <= LIMIT - LIMIT // 4
    assert str(error) == error.report == jax_bfc.last_oom_report()
    assert error.report.startswith(
        f"jax_bfc: kernel '(python)' on cpu:0 asked for {LIMIT:,} bytes of scratch; "
        f"{LIMIT // 4:,} of {LIMIT:,} in use, "
    )
    assert f"Held by '(python)' {LIMIT // 4:,}." in error.report
    assert "raise limit_bytes or memory_fraction in jax_bfc.conf" in error.report


def test_a_request_above_the_limit_says_so() -> None:
    block = jax_bfc.scratch(LIMIT + 1)
    with pytest.raises(jax_bfc.OutOfMemoryError, match="larger than the limit"), block:
        pass


def test_the_next_smaller_request_succeeds() -> None:
    block = jax_bfc.scratch(LIMIT + 1)
    with pytest.raises(jax_bfc.OutOfMemoryError), block:
        pass
    with jax_bfc.scratch(LIMIT) as s:
        assert s.nbytes == LIMIT
        assert jax_bfc.memory_stats()["pool_bytes"] == LIMIT
    stats = jax_bfc.memory_stats()
    assert stats["num_failures"] == 1
    assert stats["num_allocs"] == 1
    assert jax_bfc.kernel_stats()["(python)"].num_failures == 1


def test_what_is_free_in_pieces_is_joined_before_it_fails() -> None:
    for size in (MIB, 2 * MIB, 3 * MIB, 5 * MIB, 7 * MIB, 11 * MIB):
        with jax_bfc.scratch(size), jax_bfc.scratch(size // 2):
            pass
    with jax_bfc.scratch(LIMIT):
        assert jax_bfc.memory_stats()["cached_bytes"] == 0
