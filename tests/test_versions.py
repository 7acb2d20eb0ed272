"""The C table, called as another language would call it: through ctypes.

The structs are those of src/include/jax_bfc/c_api.h, version 1.0.
"""

import ctypes
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pools import LIMIT, MIB, fresh_pools, unchanged

import jax_bfc
from jax_bfc import _core

OK, INVALID_ARGUMENT, RESOURCE_EXHAUSTED = 0, 3, 8
FAILED_PRECONDITION = 9
HOST, CUDA = 0, 1


class Context(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint32) for name in ("pool", "kernel", "calls", "stream")
    ]


class Allocation(ctypes.Structure):
    _fields_ = [
        ("ptr", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
        ("id", ctypes.c_uint64),
    ]


class CallArgs(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("xla_api", ctypes.c_void_p),
        ("xla_context", ctypes.c_void_p),
        ("xla_frame", ctypes.c_void_p),
        ("xla_stage", ctypes.c_int32),
    ]


def returns_status(*arguments: Any) -> Any:
    return ctypes.CFUNCTYPE(ctypes.c_int, *arguments)


TEXT = (ctypes.c_char_p, ctypes.c_size_t)
CONTEXT = ctypes.POINTER(Context)


class Table(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("major_version", ctypes.c_uint32),
        ("minor_version", ctypes.c_uint32),
        ("library_version", ctypes.c_char_p),
        ("last_error", ctypes.CFUNCTYPE(ctypes.c_char_p)),
        ("begin_call", returns_status(ctypes.POINTER(CallArgs), CONTEXT)),
        ("open", returns_status(ctypes.c_int, ctypes.c_int32, *TEXT, CONTEXT)),
        ("set_label", returns_status(CONTEXT, *TEXT)),
        (
            "allocate",
            returns_status(
                CONTEXT, ctypes.c_size_t, ctypes.c_size_t, ctypes.POINTER(Allocation)
            ),
        ),
        ("free", returns_status(ctypes.c_void_p, ctypes.c_uint64)),
        ("call_site_create", returns_status(*TEXT, ctypes.POINTER(ctypes.c_uint64))),
        ("call_site_destroy", ctypes.CFUNCTYPE(None, ctypes.c_uint64)),
        ("call_site_bind", returns_status(ctypes.c_uint64, CONTEXT)),
        (
            "open_stream",
            returns_status(
                ctypes.c_int, ctypes.c_int32, ctypes.c_void_p, *TEXT, CONTEXT
            ),
        ),
    ]


def get_api(major: int, minor: int) -> Any:
    """The table as a kernel library finds it, or None."""
    # Of the whole process: importing jax_bfc made the symbol visible there.
    function = ctypes.CDLL(None).jax_bfc_get_api
    function.restype = ctypes.POINTER(Table)
    function.argtypes = [ctypes.c_uint32, ctypes.c_uint32]
    table = function(major, minor)
    return table.contents if table else None


@pytest.fixture(autouse=True)
def pools() -> Iterator[None]:
    with fresh_pools():
        yield


@pytest.fixture
def api() -> Any:
    return get_api(1, 0)


@pytest.fixture
def context(api: Any) -> Context:
    context = Context()
    assert api.open(HOST, 0, b"c_kernel", 8, context) == OK
    return context


def allocate(api: Any, context: Context, size: int, alignment: int = 1) -> Allocation:
    allocation = Allocation()
    status = api.allocate(context, size, alignment, allocation)
    assert status == OK, api.last_error()
    return allocation


def refused(api: Any, call: Callable[[], int], status: int, text: str) -> None:
    """`call` fails so, says so, and changes nothing that can be read."""
    with unchanged():
        assert call() == status
    assert re.search(text, api.last_error().decode()), api.last_error()


def test_the_table_says_its_size_and_version(api: Any) -> None:
    assert api.struct_size == ctypes.sizeof(Table)
    assert (api.major_version, api.minor_version) == (1, 1)
    assert api.library_version.decode() == jax_bfc.__version__
    assert all(bool(getattr(api, field[0])) for field in Table._fields_[4:])


@pytest.mark.parametrize(
    ("major", "minor"), [(1, 2), (1, 99), (2, 0), (0, 0), (2**32 - 1, 0)]
)
def test_a_version_that_it_cannot_serve_gets_no_table(major: int, minor: int) -> None:
    assert get_api(major, minor) is None


def test_what_is_allocated_can_be_written_and_freed(api: Any, context: Context) -> None:
    made = allocate(api, context, 1000)
    assert made.ptr % 256 == 0
    assert made.bytes == 1024
    assert made.id != 0
    ctypes.memset(made.ptr, 7, 1000)
    row = jax_bfc.kernel_stats()["c_kernel"]
    assert (row.calls, row.num_allocs, row.bytes_in_use) == (1, 1, 1024)
    assert api.free(made.ptr, made.id) == OK
    assert jax_bfc.kernel_stats()["c_kernel"].bytes_in_use == 0


def test_zero_bytes_are_a_good_size(api: Any, context: Context) -> None:
    made = allocate(api, context, 0)
    assert made.ptr
    assert made.bytes == 256
    assert api.free(made.ptr, made.id) == OK


@pytest.mark.parametrize("power", range(22))
def test_every_power_of_two_up_to_2_mib_is_an_alignment(
    api: Any, context: Context, power: int
) -> None:
    first = allocate(api, context, 300)
    made = allocate(api, context, 300, 1 << power)
    assert made.ptr % (1 << power) == 0
    for one in (made, first):
        assert api.free(one.ptr, one.id) == OK


def test_freeing_twice_is_found_out(api: Any, context: Context) -> None:
    made = allocate(api, context, 1000)
    assert api.free(made.ptr, made.id) == OK
    text = f"free of address {made.ptr} with id {made.id}, which is not in use"
    refused(api, lambda: api.free(made.ptr, made.id), INVALID_ARGUMENT, text)
    again = allocate(api, context, 1000)
    assert (again.ptr, again.id == made.id) == (made.ptr, False)
    refused(api, lambda: api.free(made.ptr, made.id), INVALID_ARGUMENT, text)
    assert api.free(again.ptr, again.id) == OK


@pytest.mark.parametrize("change", [(256, 0), (-256, 0), (0, 1), (0, 1 << 24)])
def test_a_foreign_pointer_or_id_is_refused(
    api: Any, context: Context, change: tuple[int, int]
) -> None:
    made = allocate(api, context, 1000)
    ptr, name = made.ptr + change[0], made.id + change[1]
    text = "Nothing was changed"
    refused(api, lambda: api.free(ptr, name), INVALID_ARGUMENT, text)
    assert api.free(made.ptr, made.id) == OK


@pytest.mark.parametrize("name", [0, 1, 2**56, 255 << 56, 2**64 - 1, 200 << 48])
def test_an_id_that_was_never_given_is_refused(api: Any, name: int) -> None:
    text = f"with id {name}, which is not in use"
    refused(api, lambda: api.free(4096, name), INVALID_ARGUMENT, text)
    refused(api, lambda: api.free(None, name), INVALID_ARGUMENT, text)


@pytest.mark.parametrize("alignment", [0, 3, 257, 4 << 20, 2**63, 2**64 - 1])
def test_an_alignment_that_is_not_valid_is_refused(
    api: Any, context: Context, alignment: int
) -> None:
    text = f"'c_kernel' asked for alignment {alignment:,}; the valid ones are the pow"
    made = Allocation()
    refused(
        api,
        lambda: api.allocate(context, 1, alignment, made),
        INVALID_ARGUMENT,
        text,
    )
    assert not made.ptr


@pytest.mark.parametrize("size", [2**47 + 1, 2**63, 2**64 - 1, 2**64 - 255])
def test_a_size_that_overflows_is_refused(
    api: Any, context: Context, size: int
) -> None:
    text = f"'c_kernel' asked for {size:,} bytes of scratch; the valid sizes are 0 to"
    made = Allocation()
    refused(api, lambda: api.allocate(context, size, 1, made), INVALID_ARGUMENT, text)
    assert not made.ptr


def test_past_the_limit_is_refused_with_the_report(api: Any, context: Context) -> None:
    made = Allocation()
    assert api.allocate(context, LIMIT + 1, 1, made) == RESOURCE_EXHAUSTED
    text = api.last_error().decode()
    assert text.startswith("jax_bfc: kernel 'c_kernel' on cpu:0 asked for 67,108,865")
    assert text == jax_bfc.last_oom_report()
    assert jax_bfc.kernel_stats()["c_kernel"].num_failures == 1
    fits = allocate(api, context, LIMIT)
    assert api.free(fits.ptr, fits.id) == OK


def test_the_largest_size_is_out_of_memory_and_no_mistake(
    api: Any, context: Context
) -> None:
    made = Allocation()
    status = api.allocate(context, _core.MAX_REQUEST, 2 * MIB, made)
    assert status == RESOURCE_EXHAUSTED
    assert "aligned to 2,097,152" in api.last_error().decode()


def test_an_unknown_device_is_refused(api: Any) -> None:
    context = Context()
    for kind, ordinal, status, text in (
        (2, 0, INVALID_ARGUMENT, "device kind 2; the valid ones are 0"),
        (CUDA, -1, INVALID_ARGUMENT, "CUDA device -1; the valid ones are 0 to 63"),
        (HOST, -1, INVALID_ARGUMENT, "CPU device -1; the valid ones are 0 to 2047"),
        (HOST, 2048, INVALID_ARGUMENT, "CPU device 2048; the valid ones are 0 to"),
    ):
        call = functools.partial(api.open, kind, ordinal, b"k", 1, context)
        refused(api, call, status, text)
        stream = functools.partial(
            api.open_stream, kind, ordinal, None, b"k", 1, context
        )
        refused(api, stream, status, text)


def test_cuda_without_a_driver_is_refused(api: Any) -> None:
    if _core.why_no_cuda() is None:
        pytest.skip("there is a CUDA driver")
    call = functools.partial(api.open, CUDA, 0, b"k", 1, Context())
    refused(api, call, FAILED_PRECONDITION, "there is no CUDA driver")


def test_on_the_host_a_stream_says_nothing(api: Any) -> None:
    context = Context()
    assert api.open_stream(HOST, 0, None, b"streamed", 8, context) == OK
    made = allocate(api, context, 1000)
    assert jax_bfc.kernel_stats()["streamed"].num_allocs == 1
    assert api.free(made.ptr, made.id) == OK


def test_a_context_that_nobody_filled_in_is_refused(api: Any) -> None:
    context = Context(pool=4000, kernel=4000)
    text = "a context that neither begin_call nor open filled in"
    refused(
        api,
        lambda: api.allocate(context, 1, 1, Allocation()),
        INVALID_ARGUMENT,
        text,
    )


@pytest.mark.parametrize(
    ("stage", "name"),
    [(0, "instantiate"), (1, "prepare"), (2, "initialize"), (4, "record")],
)
def test_every_stage_but_execute_is_refused_by_name(
    api: Any, stage: int, name: str
) -> None:
    args = CallArgs(struct_size=ctypes.sizeof(CallArgs), xla_stage=stage)
    refused(
        api,
        lambda: api.begin_call(args, Context()),
        FAILED_PRECONDITION,
        f"asked for in the {name} stage. Ask for it in the execute stage",
    )


def test_a_label_is_a_row_of_its_own(api: Any, context: Context) -> None:
    assert api.set_label(context, b"tiles", 5) == OK
    made = allocate(api, context, 100)
    assert jax_bfc.kernel_stats()["c_kernel:tiles"].bytes_in_use == 256
    assert api.free(made.ptr, made.id) == OK


def test_a_call_site_counts_from_its_creation_to_its_end(
    api: Any, context: Context
) -> None:
    site = ctypes.c_uint64()
    assert api.call_site_create(b"c_site", 6, site) == OK
    assert jax_bfc.kernel_stats()["c_site"].call_sites == 1
    assert api.call_site_bind(site, context) == OK
    made = allocate(api, context, 100)
    assert jax_bfc.kernel_stats()["c_site"].bytes_in_use == 256
    assert api.free(made.ptr, made.id) == OK
    api.call_site_destroy(site)
    assert jax_bfc.kernel_stats()["c_site"].call_sites == 0


def test_a_call_site_made_before_the_import_is_refused(
    api: Any, context: Context
) -> None:
    text = "a call site that was made before jax_bfc was imported"
    refused(api, lambda: api.call_site_bind(0, context), INVALID_ARGUMENT, text)
