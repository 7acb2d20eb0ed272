"""jax_bfc.scratch() on a CUDA device: order of streams, and other libraries."""

import contextlib
import gc
import re
from typing import Any

import jax
import numpy as np
import pytest

import jax_bfc

from .conftest import held

torch = pytest.importorskip("torch", reason="PyTorch makes the streams here")

MIB = 1 << 20


def tensor(scratch: Any) -> Any:
    """float32 of all of it."""
    return torch.from_dlpack(scratch).view(torch.float32)


def only(tensor: Any, value: float) -> bool:
    """Whether it has this value alone, as a copy on the host has it."""
    return bool((tensor.cpu().numpy() == value).all())


def test_what_it_says_of_itself(pool: Any) -> None:
    with jax_bfc.scratch(1000, device=pool, alignment=4096) as s:
        assert s.nbytes == 1000
        assert s.ptr % 4096 == 0
        assert s.__dlpack_device__() == (2, 0)
        interface = s.__cuda_array_interface__
        assert interface["data"] == (s.ptr, False)
        assert interface["shape"] == (1000,)
        assert interface["stream"] is None
        with pytest.raises((BufferError, TypeError)):
            memoryview(s)
    with pytest.raises(ValueError, match="after its with block ended"):
        s.__cuda_array_interface__  # noqa: B018


@pytest.mark.parametrize("library", ["torch", "cupy", "numba.cuda"])
def test_other_libraries_write_and_read_it(pool: Any, library: str) -> None:
    other = pytest.importorskip(library)
    with jax_bfc.scratch(4000, device=pool) as s:
        if library == "torch":
            torch.as_tensor(s, device="cuda").fill_(7)
        elif library == "cupy":
            other.asarray(s).fill(7)
        else:
            sevens = np.full(4000, 7, np.uint8)
            other.as_cuda_array(s).copy_to_device(sevens)
        torch.cuda.synchronize()
        assert only(torch.from_dlpack(s), 7)
        if library == "cupy":
            assert bool((other.asnumpy(other.from_dlpack(s)) == 7).all())


def test_streams_of_other_libraries_are_known(pool: Any) -> None:
    streams = [torch.cuda.Stream(), torch.cuda.Stream().cuda_stream]
    cupy = pytest.importorskip("cupy")
    streams.append(cupy.cuda.Stream())
    for stream in streams:
        with jax_bfc.scratch(1000, device=pool, stream=stream) as s:
            assert s.__cuda_array_interface__["stream"] > 2
    for bad in ("1", 1.5, -1, object(), True):
        with pytest.raises(TypeError, match="valid: None, the address of a CUDA"):
            jax_bfc.scratch(1000, device=pool, stream=bad)


def test_a_stream_gets_its_own_memory_back_at_once(pool: Any, library: Any) -> None:
    stream = torch.cuda.Stream()
    with jax_bfc.scratch(MIB, device=pool, stream=stream):
        pass  # where other streams have all the lanes, a new one waits for one
    seen = set()
    with held(library, stream):
        for _ in range(10):
            with jax_bfc.scratch(MIB, device=pool, stream=stream) as s:
                seen.add(s.ptr)
        assert not stream.query()  # nothing waited
        with jax_bfc.scratch(32 * MIB, device=pool, stream=stream):
            pass
        assert not stream.query()  # nor for growth
    assert len(seen) == 1


def test_another_stream_gets_other_memory(pool: Any) -> None:
    a, b = torch.cuda.Stream(), torch.cuda.Stream()
    with jax_bfc.scratch(MIB, device=pool, stream=a) as s:
        first = s.ptr
    with jax_bfc.scratch(MIB, device=pool, stream=b) as s:
        assert s.ptr != first


@pytest.mark.parametrize("source", ["cuda_vmm", "cuda"])
def test_memory_goes_to_another_stream_only_when_its_work_is_done(
    pool: Any, library: Any, source: str
) -> None:
    jax_bfc.configure(limit_bytes=64 * MIB, source=source)
    a, b = torch.cuda.Stream(), torch.cuda.Stream()
    result = torch.zeros(40 * MIB // 4, device="cuda")
    torch.cuda.synchronize()
    with contextlib.ExitStack() as stack:
        with (
            jax_bfc.scratch(40 * MIB, device=pool, stream=a) as s,
            torch.cuda.stream(a),
        ):
            view = tensor(s)
            view.fill_(1)
            stack.enter_context(held(library, a))
            result.copy_(view)
            del view
        assert not a.query()
        library.HoldOpen(300)  # while the next line waits
        # There is room only if what `a` freed goes: 40 of 64 MiB are its.
        with jax_bfc.scratch(40 * MIB, device=pool, stream=b) as s:
            with torch.cuda.stream(b):
                tensor(s).fill_(2)
            torch.cuda.synchronize()
    gc.collect()
    assert only(result, 1)
    assert jax_bfc.memory_stats(pool)["num_trims"] > 0


def test_without_a_stream_memory_waits_for_the_device(pool: Any, library: Any) -> None:
    jax_bfc.configure(limit_bytes=64 * MIB)
    stream = torch.cuda.Stream()
    result = torch.zeros(40 * MIB // 4, device="cuda")
    torch.cuda.synchronize()
    with contextlib.ExitStack() as stack:
        with jax_bfc.scratch(40 * MIB, device=pool) as s, torch.cuda.stream(stream):
            view = tensor(s)
            view.fill_(1)
            stack.enter_context(held(library, stream))
            result.copy_(view)
            del view
        assert not stream.query()
        library.HoldOpen(300)  # while the next line waits
        with jax_bfc.scratch(40 * MIB, device=pool) as s:
            assert stream.query()
            tensor(s).fill_(2)
            torch.cuda.synchronize()
    assert only(result, 1)


def test_what_was_exported_delays_the_free(pool: Any) -> None:
    stream = torch.cuda.Stream()
    with jax_bfc.scratch(MIB, device=pool, stream=stream) as s:
        kept = tensor(s)
    assert jax_bfc.memory_stats(pool)["num_live"] == 1
    del kept
    gc.collect()
    assert jax_bfc.memory_stats(pool)["num_live"] == 0


def test_many_streams_come_and_go(pool: Any) -> None:
    cupy = pytest.importorskip("cupy")
    for i in range(200):
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream, jax_bfc.scratch(100_000, device=pool, stream=stream) as s:
            view = cupy.asarray(s)
            view.fill(i % 256)
            assert bool((cupy.asnumpy(view) == i % 256).all())
            del view
        del stream
    assert jax_bfc.memory_stats(pool)["num_live"] == 0
    assert jax_bfc.memory_stats(pool)["pool_bytes"] <= 256 * MIB


def test_past_the_limit_is_an_out_of_memory_error(pool: Any) -> None:
    block = jax_bfc.scratch(300 * MIB, device=pool)
    text = re.escape("'(python)' on cuda:0")
    with pytest.raises(jax_bfc.OutOfMemoryError, match=text) as e, block:
        pass
    assert e.value.limit == 256 * MIB


def stream_of_cupy(cupy: Any, address: int) -> Any:
    """CuPy 14 deprecates ExternalStream in favour of from_external()."""
    if not hasattr(cupy.cuda.Stream, "from_external"):
        return cupy.cuda.ExternalStream(address)

    class Foreign:
        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, address

    return cupy.cuda.Stream.from_external(Foreign())


def test_inside_a_buffer_callback(pool: Any) -> None:
    from jax.experimental import buffer_callback

    cupy = pytest.importorskip("cupy")

    def body(ctx: Any, out: Any, x: Any) -> None:
        stream = stream_of_cupy(cupy, ctx.stream)
        bytes_wanted = 4 * x.shape[0]
        with stream, jax_bfc.scratch(bytes_wanted, device=pool, stream=stream) as s:
            doubled = cupy.asarray(s).view(cupy.float32)
            cupy.multiply(cupy.asarray(x), 2, out=doubled)
            cupy.asarray(out)[:] = doubled

    x = np.arange(100_000, dtype=np.float32)
    call = buffer_callback.buffer_callback(body, jax.ShapeDtypeStruct(x.shape, x.dtype))
    np.testing.assert_array_equal(jax.jit(call)(x), 2 * x)
    gc.collect()
    assert jax_bfc.memory_stats(pool)["bytes_in_use"] == 0
