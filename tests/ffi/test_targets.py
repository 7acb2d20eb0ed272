"""Targets: call sites, state of the author's own, other libraries, processes."""

import ctypes
import gc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bfc

from .conftest import Kernels

pytestmark = pytest.mark.usefixtures("fresh_pools")


def run(kernels: Kernels, target: str) -> None:
    x = jnp.arange(100.0)
    np.testing.assert_array_equal(kernels.double(target)(x), 2 * np.arange(100.0))


def test_a_call_site_lives_as_long_as_its_executable(kernels: Kernels) -> None:
    jax_bfc.register_ffi_target("test.sites", kernels.capsule("kDouble"))
    double = kernels.double("test.sites")
    twice = jax.jit(lambda x: double(double(x)))
    for _ in range(3):
        np.testing.assert_array_equal(twice(jnp.ones(10)), 4 * np.ones(10))
    assert jax_bfc.kernel_stats()["test.sites"].call_sites == 2
    assert jax_bfc.kernel_stats()["test.sites"].calls == 6
    del twice
    jax.clear_caches()
    gc.collect()
    assert jax_bfc.kernel_stats()["test.sites"].call_sites == 0


def test_plain_registration_is_counted_as_unregistered(kernels: Kernels) -> None:
    jax.ffi.register_ffi_target("test.plain", kernels.capsule("kDouble"))
    run(kernels, "test.plain")
    assert jax_bfc.kernel_stats()["(unregistered)"].calls == 1


def test_the_same_registration_twice_is_one(kernels: Kernels) -> None:
    for _ in range(2):
        jax_bfc.register_ffi_target("test.twice", kernels.capsule("kDouble"))
    run(kernels, "test.twice")
    assert jax_bfc.kernel_stats()["test.twice"].calls == 1


def test_a_handler_with_state_of_its_own_binds_its_call_site(
    kernels: Kernels,
) -> None:
    library = ctypes.CDLL(str(kernels.build / "libkernels.so"))
    builder = ctypes.pythonapi.PyCapsule_New
    builder.restype = ctypes.py_object
    builder.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)

    def pointer(symbol: str) -> Any:
        function = getattr(library, symbol)
        function.restype = ctypes.c_void_p
        return builder(function(), None, None)

    jax.devices()  # JAX queues types and targets the wrong way round before
    jax.ffi.register_ffi_type(
        "test.State",
        {"type_id": pointer("StateTypeId"), "type_info": pointer("StateTypeInfo")},
    )
    stages = {
        "instantiate": kernels.capsule("kMakeState"),
        "execute": kernels.capsule("kWithState"),
    }
    jax_bfc.register_ffi_target("test.state", stages)
    jax.ffi.register_ffi_target("test.state_plain", stages)
    run(kernels, "test.state")
    run(kernels, "test.state_plain")
    stats = jax_bfc.kernel_stats()["own_state_kernel"]
    assert (stats.calls, stats.call_sites) == (2, 2)
    jax.clear_caches()
    gc.collect()
    assert jax_bfc.kernel_stats()["own_state_kernel"].call_sites == 0


def test_scratch_in_another_stage_is_refused_by_its_name(kernels: Kernels) -> None:
    jax_bfc.register_ffi_target(
        "test.stage",
        {
            "instantiate": kernels.capsule("kInInstantiate"),
            "execute": kernels.capsule("kNothing"),
        },
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match="in the instantiate stage"):
        kernels.double("test.stage")(jnp.ones(3))


def test_two_libraries_share_the_pool(kernels: Kernels) -> None:
    jax_bfc.register_ffi_target("test.new", kernels.capsule("kDouble"))
    jax_bfc.register_ffi_target("test.old", kernels.capsule("kDouble", "kernels_older"))
    run(kernels, "test.new")
    run(kernels, "test.old")
    stats = jax_bfc.memory_stats()
    assert stats["num_allocs"] == 2
    assert stats["pool_bytes"] == 2 << 20  # one step served both
    assert jax_bfc.kernel_stats()["test.old"].calls == 1


def test_a_header_newer_than_the_library_is_told_so(kernels: Kernels) -> None:
    jax_bfc.register_ffi_target(
        "test.newer", kernels.capsule("kDouble", "kernels_newer")
    )
    with pytest.raises(
        jax.errors.JaxRuntimeError, match=r"built against version 1\.99"
    ):
        kernels.double("test.newer")(jnp.ones(3))


def test_more_targets_than_the_table_holds_still_work(
    run_python: Callable[..., str],
) -> None:
    program = (
        PRELUDE
        + """
for i in range(1030):
    jax_bfc.register_ffi_target(f"many.{i}", capsule)
for i in (0, 1023, 1029):
    check(f"many.{i}")
print(sorted(jax_bfc.kernel_stats()))
"""
    )
    assert run_python(program).strip() == "['(unregistered)', 'many.0', 'many.1023']"


PRELUDE = """
import ctypes, sys
import jax, jax.numpy as jnp, numpy as np
import jax_bfc
library = ctypes.CDLL(sys.argv[1] + "/libkernels.so")
capsule = jax.ffi.pycapsule(library.kDouble)
def double(target):
    return lambda x: jax.ffi.ffi_call(
        target, jax.ShapeDtypeStruct(x.shape, jnp.float32), vmap_method="sequential")(x)
alive = []  # so that executables and their call sites are
def check(target):
    alive.append(jax.jit(double(target)))
    y = alive[-1](jnp.arange(8.0))
    np.testing.assert_array_equal(y, 2 * np.arange(8.0))
"""


def test_registration_before_any_backend(run_python: Callable[..., str]) -> None:
    program = (
        PRELUDE
        + """
jax_bfc.register_ffi_target("early", capsule)
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
check("early")
jax_bfc.register_ffi_target("late", capsule)
check("late")
stats = jax_bfc.kernel_stats()
print(stats["early"].call_sites, stats["late"].call_sites)
"""
    )
    assert run_python(program).split() == ["1", "1"]


def test_a_process_that_never_imported_jax_bfc(run_python: Callable[..., str]) -> None:
    program = (
        PRELUDE.replace("import jax_bfc\n", "")
        + """
jax.ffi.register_ffi_target("alone", capsule, platform="cpu")
try:
    check("alone")
except jax.errors.JaxRuntimeError as error:
    print(error)
import jax_bfc
check("alone")
print("then served")
"""
    )
    out = run_python(program)
    assert "Add `import jax_bfc`" in out
    assert "then served" in out


def test_eight_devices_by_pmap_and_shard_map(run_python: Callable[..., str]) -> None:
    program = (
        PRELUDE
        + """
from jax.sharding import Mesh, PartitionSpec as P
jax_bfc.register_ffi_target("many", capsule)
x = np.arange(8 * 1000, dtype=np.float32).reshape(8, 1000)
mesh = Mesh(np.array(jax.devices()), "i")
sharded = jax.jit(jax.shard_map(double("many"), mesh=mesh, in_specs=P("i"),
                                out_specs=P("i"), check_vma=False))
for _ in range(5):
    np.testing.assert_array_equal(sharded(x), 2 * x)
    np.testing.assert_array_equal(jax.pmap(double("many"))(x), 2 * x)
for device in jax.devices():
    stats = jax_bfc.memory_stats(device)
    assert stats["num_allocs"] == 10, (device, stats)
    assert stats["num_live"] == 0
total = sum(jax_bfc.memory_stats(d)["pool_bytes"] for d in jax.devices())
assert total == 8 * (2 << 20), total
assert jax_bfc.trim() == total
print(jax_bfc.kernel_stats(jax.devices()[3])["many"].call_sites)
"""
    )
    out = run_python(program, XLA_FLAGS="--xla_force_host_platform_device_count=8")
    assert int(out) >= 1


def test_the_persistent_compilation_cache(
    run_python: Callable[..., str], tmp_path: Any
) -> None:
    program = (
        PRELUDE
        + """
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax_bfc.register_ffi_target("cached", capsule)
check("cached")
row = jax_bfc.kernel_stats()["cached"]
print(row.calls, row.call_sites)
"""
    )
    for _ in range(2):
        out = run_python(program, JAX_COMPILATION_CACHE_DIR=str(tmp_path))
        assert out.split() == ["1", "1"]
    assert any(tmp_path.iterdir())
