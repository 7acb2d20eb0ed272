"""Handlers that draw scratch, against plain jnp, in every transformation."""

import concurrent.futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_bfc

from .conftest import Kernels

pytestmark = pytest.mark.usefixtures("fresh_pools")


def expected(x: Any) -> Any:
    return np.asarray(x, np.float64) * 2


def some(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", ["Double", "Async", "Everything"])
def test_a_handler_computes_through_its_scratch(kernels: Kernels, name: str) -> None:
    double = kernels.double(f"test.{name}")
    x = some(1000)
    np.testing.assert_array_equal(double(jnp.asarray(x)), expected(x))
    np.testing.assert_array_equal(jax.jit(double)(x), expected(x))
    assert jax_bfc.memory_stats()["num_live"] == 0


def test_vmap_and_grad_through_custom_vjp(kernels: Kernels) -> None:
    double = kernels.double("test.Double")

    @jax.custom_vjp
    def f(x: Any) -> Any:
        return double(x)

    f.defvjp(lambda x: (double(x), None), lambda _, g: (double(g),))
    x = some(7, 33)
    np.testing.assert_array_equal(jax.vmap(f)(jnp.asarray(x)), expected(x))
    gradient = jax.grad(lambda x: jnp.sum(jax.vmap(f)(x) ** 2))(jnp.asarray(x))
    np.testing.assert_allclose(gradient, 8 * x.astype(np.float64), rtol=1e-6)


def test_a_kernel_is_counted_under_its_target(kernels: Kernels) -> None:
    kernels.double("test.Double")(jnp.ones(1000)).block_until_ready()
    kernels.double("test.Everything")(jnp.ones(1000)).block_until_ready()
    stats = jax_bfc.kernel_stats()
    one = stats["test.Double"]
    assert (one.calls, one.num_allocs, one.largest_alloc_size) == (1, 1, 4000)
    assert one.peak_bytes_in_use == 4096
    assert one.bytes_in_use == 0
    assert stats["test.Everything"].num_allocs == 10
    assert stats["test.Everything:labelled"].largest_alloc_size == 4000


def test_zero_elements_are_good(kernels: Kernels) -> None:
    assert kernels.double("test.Double")(jnp.ones((0,))).shape == (0,)


def addresses(size: int, alignment: int, count: int = 1) -> Any:
    result = jax.ShapeDtypeStruct((count,), jnp.int64)
    call = jax.ffi.ffi_call("test.Addresses", result)
    return np.asarray(call(size=np.int64(size), alignment=np.int64(alignment)))


@pytest.mark.usefixtures("kernels")
class TestSizes:
    @pytest.fixture(autouse=True)
    def _x64(self) -> Any:
        config: Any = jax.config  # its options are not in its type
        before = config.jax_enable_x64
        config.update("jax_enable_x64", True)
        yield
        config.update("jax_enable_x64", before)

    @pytest.mark.parametrize("alignment", [1, 16, 256, 4096, 2 << 20])
    def test_alignment_is_met(self, alignment: int) -> None:
        where = addresses(1000, alignment, 5)
        assert (where % max(alignment, 256) == 0).all()
        assert (np.diff(np.sort(where)) >= 1024).all()

    @pytest.mark.parametrize("alignment", [0, 3, 24, 4 << 20, -1])
    def test_a_bad_alignment_is_refused(self, alignment: int) -> None:
        with pytest.raises(jax.errors.JaxRuntimeError, match="powers of two up to 2,0"):
            addresses(1000, alignment)
        assert jax_bfc.memory_stats()["num_live"] == 0

    @pytest.mark.parametrize("size", [-1, -(2**63), 2**48])
    def test_a_bad_size_is_refused(self, size: int) -> None:
        with pytest.raises(jax.errors.JaxRuntimeError, match="valid sizes are 0 to 2"):
            addresses(size, 1)

    def test_past_the_limit_the_report_names_the_kernel_and_the_program_goes_on(
        self,
    ) -> None:
        limit = jax_bfc.memory_stats()["bytes_limit"]
        with pytest.raises(
            jax.errors.JaxRuntimeError,
            match=r"RESOURCE_EXHAUSTED: .*kernel 'test.Addresses' on cpu:0 asked for",
        ):
            addresses(limit + 1, 1)
        report = jax_bfc.last_oom_report()
        assert report is not None
        assert "kernel 'test.Addresses'" in report
        assert addresses(1 << 20, 1)[0] != 0
        assert jax_bfc.kernel_stats()["test.Addresses"].num_failures == 1
        assert jax_bfc.memory_stats()["num_live"] == 0

    def test_the_same_call_gets_the_same_address_again(self) -> None:
        assert addresses(1 << 20, 1) == addresses(1 << 20, 1)


def test_16_threads_at_once(kernels: Kernels) -> None:
    x = some(5000)
    functions = [jax.jit(kernels.double(f"test.{n}")) for n in ("Double", "Async")]
    inputs = [jnp.asarray(x + i) for i in range(16)]

    def work(i: int) -> None:
        for k in range(40):
            y = functions[k % 2](inputs[i])
            np.testing.assert_array_equal(y, expected(x + np.float32(i)))

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    stats = jax_bfc.memory_stats()
    assert stats["num_live"] == 0
    assert stats["bytes_in_use"] == 0
    assert stats["num_allocs"] == 640


def test_jax_export_and_back(kernels: Kernels) -> None:
    double = jax.jit(kernels.double("test.Double"))
    x = some(100)
    exported = jax.export.export(
        double,
        disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("test.Double")],
    )(jax.ShapeDtypeStruct(x.shape, x.dtype))
    again = jax.export.deserialize(exported.serialize())
    np.testing.assert_array_equal(again.call(x), expected(x))
    assert jax_bfc.kernel_stats()["test.Double"].calls == 1
