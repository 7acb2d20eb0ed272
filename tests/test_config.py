"""What configure() takes and refuses, and what get_config() then says."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import jax
import pytest
from pools import LIMIT, MIB, fresh_pools, output_of, unchanged

import jax_bfc
from jax_bfc import _core


@pytest.fixture(autouse=True)
def pools() -> Iterator[None]:
    with fresh_pools():
        yield


FRACTION = "valid: a number in (0, 1]"
SIZE = 'valid: a positive int, or text such as "4GiB"'
FACTOR = "valid: a finite number of at least 1"

BAD_VALUES = [
    ("memory_fraction", 0, FRACTION),
    ("memory_fraction", -0.5, FRACTION),
    ("memory_fraction", 1e-15, "that gives at least 4,096 bytes, a page"),
    ("memory_fraction", 1.0001, FRACTION),
    ("memory_fraction", float("nan"), FRACTION),
    ("memory_fraction", float("inf"), FRACTION),
    ("limit_bytes", 0, SIZE),
    ("limit_bytes", -1, SIZE),
    ("limit_bytes", 2**63, f"at most {_core.MAX_REQUEST}"),
    ("limit_bytes", "4 parsecs", SIZE),
    ("limit_bytes", "", SIZE),
    ("limit_bytes", "-4GiB", SIZE),
    ("limit_bytes", "4gibs", SIZE),
    ("limit_bytes", 1, "valid: at least 4,096 bytes, a page"),
    ("limit_bytes", "4095", "valid: at least 4,096 bytes, a page"),
    ("limit_bytes", "4KiBiB", SIZE),
    ("limit_bytes", "1e9", SIZE),
    ("limit_bytes", "nan", SIZE),
    ("limit_bytes", "9" * 400 + "TiB", SIZE),
    ("initial_bytes", "0MiB", SIZE),
    ("initial_bytes", 2**63, f"at most {_core.MAX_REQUEST}"),
    ("max_growth_bytes", -(2**63), SIZE),
    ("growth_factor", 0.99, FACTOR),
    ("growth_factor", float("nan"), FACTOR),
    ("growth_factor", float("inf"), FACTOR),
    ("preallocate", 1, "valid: True, False"),
    ("preallocate", "yes", "valid: True, False"),
    ("source", "disk", "valid: 'auto', 'host', 'cuda_vmm', 'cuda'"),
    ("huge_pages", "sometimes", "valid: 'auto', True, False"),
    ("huge_pages", 1, "valid: 'auto', True, False"),
]


@pytest.mark.parametrize(("name", "value", "text"), BAD_VALUES)
def test_a_bad_value_is_refused_by_name_and_changes_nothing(
    name: str, value: Any, text: str
) -> None:
    with unchanged(), pytest.raises(ValueError, match=re.escape(text)) as error:
        jax_bfc.configure(**{name: value})
    assert str(error.value).startswith(f"{name}=")


BAD_TYPES = [
    ("memory_fraction", "0.5", "is a str; " + FRACTION),
    ("memory_fraction", True, "is a bool; " + FRACTION),
    ("memory_fraction", [0.5], "is a list; " + FRACTION),
    ("limit_bytes", 4.5, "is a float; " + SIZE),
    ("limit_bytes", True, "is a bool; " + SIZE),
    ("initial_bytes", b"4MiB", "is a bytes; " + SIZE),
    ("growth_factor", "2", "is a str; " + FACTOR),
    ("device", "cpu", "is a str; valid: a jax.Device"),
    ("device", 0, "is a int; valid: a jax.Device"),
]


@pytest.mark.parametrize(("name", "value", "text"), BAD_TYPES)
def test_a_value_of_the_wrong_type_is_refused_by_name(
    name: str, value: Any, text: str
) -> None:
    with unchanged(), pytest.raises(TypeError, match=re.escape(text)) as error:
        jax_bfc.configure(**{name: value})
    assert str(error.value).startswith(f"{name}=")


def test_a_bad_value_beside_good_ones_changes_none_of_them() -> None:
    with unchanged(), pytest.raises(ValueError, match="growth_factor=0"):
        jax_bfc.configure(limit_bytes="32MiB", initial_bytes=MIB, growth_factor=0)


def test_a_fraction_and_a_limit_exclude_each_other() -> None:
    text = "memory_fraction=0.5 and limit_bytes='1GiB' exclude each other"
    with unchanged(), pytest.raises(ValueError, match=re.escape(text)):
        jax_bfc.configure(memory_fraction=0.5, limit_bytes="1GiB")


def test_an_unknown_key_is_refused() -> None:
    with unchanged(), pytest.raises(TypeError, match="limit_byte"):
        jax_bfc.configure(limit_byte=1)  # type: ignore[call-arg]


def test_arguments_go_by_keyword_only() -> None:
    with unchanged(), pytest.raises(TypeError, match="positional"):
        jax_bfc.configure(0.5)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GiB", 4 << 30),
        ("512MiB", 512 << 20),
        ("1.5GB", 1_500_000_000),
        ("64KiB", 64 << 10),
        (" 7 MB ", 7_000_000),
        ("1gib", 1 << 30),
        ("2 mb", 2_000_000),
        ("4096", 4096),
        ("12345", 12345),
        ("12345B", 12345),
        (1 << 20, 1 << 20),
    ],
)
def test_sizes_are_ints_or_text_with_a_unit(text: int | str, size: int) -> None:
    jax_bfc.configure(limit_bytes=text)
    assert jax_bfc.get_config().limit_bytes == size
    assert jax_bfc.memory_stats()["bytes_limit"] == size


def test_what_is_left_out_keeps_its_value() -> None:
    jax_bfc.configure(initial_bytes="1MiB", growth_factor=1.5)
    jax_bfc.configure(limit_bytes="48MiB")
    config = jax_bfc.get_config()
    assert config.limit_bytes == 48 * MIB
    assert config.initial_bytes == MIB
    assert config.growth_factor == 1.5
    with unchanged():
        jax_bfc.configure()


def test_a_source_of_cuda_is_refused_where_there_is_no_driver() -> None:
    if _core.why_no_cuda() is None:
        pytest.skip("there is a CUDA driver")
    for source in ("cuda", "cuda_vmm"):
        text = f"source='{source}', but there is no CUDA driver .*; valid here: 'auto'"
        with unchanged(), pytest.raises(ValueError, match=text):
            jax_bfc.configure(source=source)


def test_a_library_that_is_no_driver_is_named() -> None:
    code = """
        import jax_bfc
        try:
            jax_bfc.configure(source="cuda")
        except ValueError as error:
            print(error)
    """
    missing = output_of(code, env={"JAX_BFC_LIBCUDA": "/nowhere/libcuda.so"})
    assert "there is no CUDA driver (/nowhere/libcuda.so" in missing
    other = output_of(code, env={"JAX_BFC_LIBCUDA": "libm.so.6"})
    assert "the CUDA driver in libm.so.6 is too old; jax_bfc needs CUDA 12.0" in other


def test_a_fraction_is_of_the_memory_that_the_host_has() -> None:
    jax_bfc.configure(memory_fraction=0.25)
    config = jax_bfc.get_config()
    assert config.memory_fraction == 0.25
    assert config.limit_bytes == int(_core.host_total_bytes() * 0.25)
    jax_bfc.configure(limit_bytes=LIMIT)
    assert jax_bfc.get_config().memory_fraction is None


def test_the_config_is_frozen() -> None:
    config = jax_bfc.get_config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.limit_bytes = 1  # type: ignore[misc]


def test_a_limit_below_what_is_in_use_is_refused() -> None:
    text = "limit_bytes=1,048,576 is below the"
    with jax_bfc.scratch(10 * MIB), unchanged():
        with pytest.raises(ValueError, match=text) as error:
            jax_bfc.configure(limit_bytes=MIB, growth_factor=3.0)
        assert "Nothing was changed" in str(error.value)
    jax_bfc.configure(limit_bytes=MIB)
    assert jax_bfc.get_config().limit_bytes == MIB


def test_a_limit_above_what_is_in_use_gives_the_rest_back() -> None:
    with jax_bfc.scratch(2 * MIB):
        with jax_bfc.scratch(40 * MIB):
            pass
        assert jax_bfc.memory_stats()["pool_bytes"] >= 40 * MIB
        jax_bfc.configure(limit_bytes=4 * MIB)
        stats = jax_bfc.memory_stats()
        assert 2 * MIB <= stats["pool_bytes"] <= 4 * MIB
        assert stats["bytes_limit"] == 4 * MIB


def test_a_raised_limit_serves_what_did_not_fit() -> None:
    block = jax_bfc.scratch(LIMIT + 1)
    with pytest.raises(jax_bfc.OutOfMemoryError), block:
        pass
    jax_bfc.configure(limit_bytes=2 * LIMIT)
    with block as s:
        assert s.nbytes == LIMIT + 1


def test_steps_grow_by_the_factor_from_the_initial_size() -> None:
    jax_bfc.configure(initial_bytes=MIB, growth_factor=3.0, max_growth_bytes=4 * MIB)
    held = []
    mapped = []
    for _ in range(12):
        block = jax_bfc.scratch(MIB)
        block.__enter__()
        held.append(block)
        mapped.append(jax_bfc.memory_stats()["pool_bytes"] // MIB)
    assert mapped == [1, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12]
    for block in held:
        block.__exit__(None, None, None)


def test_one_device_can_have_a_limit_of_its_own() -> None:
    device = jax.devices()[0]
    jax_bfc.configure(limit_bytes=8 * MIB, device=device)
    assert jax_bfc.get_config(device).limit_bytes == 8 * MIB
    assert jax_bfc.get_config() == jax_bfc.get_config(device)  # the default device
    assert jax_bfc.memory_stats(device)["bytes_limit"] == 8 * MIB
    jax_bfc.configure(limit_bytes=LIMIT)
    assert jax_bfc.get_config(device).limit_bytes == LIMIT


def test_configuring_all_keeps_what_was_set_for_one() -> None:
    device = jax.devices()[0]
    jax_bfc.configure(limit_bytes=8 * MIB, initial_bytes=MIB, device=device)
    jax_bfc.configure(growth_factor=3.0)
    config = jax_bfc.get_config(device)
    assert (config.limit_bytes, config.growth_factor) == (8 * MIB, 3.0)
    assert jax_bfc.memory_stats(device)["bytes_limit"] == 8 * MIB
    jax_bfc.configure(initial_bytes=2 * MIB)  # both are asked for the same
    config = jax_bfc.get_config(device)
    assert (config.limit_bytes, config.initial_bytes) == (8 * MIB, 2 * MIB)
    with jax_bfc.scratch(6 * MIB), unchanged(), pytest.raises(ValueError):  # noqa: PT011
        jax_bfc.configure(limit_bytes=MIB, growth_factor=2.0)
    jax_bfc.configure(memory_fraction=0.5)
    assert jax_bfc.get_config(device) == jax_bfc.get_config()
    assert jax_bfc.get_config(device).memory_fraction == 0.5


def test_a_device_may_be_given_by_its_name() -> None:
    device = jax.devices()[0]
    jax_bfc.configure(limit_bytes=8 * MIB, device="cpu:0")
    assert jax_bfc.get_config("cpu:0") == jax_bfc.get_config(device)
    assert jax_bfc.get_config(device).limit_bytes == 8 * MIB
    with jax_bfc.scratch(1000, device="cpu:0"):
        assert jax_bfc.memory_stats("cpu:0")["bytes_in_use"] == 1024
    with unchanged(), pytest.raises(ValueError, match="device='cpu:7'; valid: 'cpu:0'"):
        jax_bfc.scratch(1, device="cpu:7")
    if not any(d.platform == "gpu" for d in jax.devices()):
        for name in ("cuda:0", "gpu:0"):
            with (
                unchanged(),
                pytest.raises(ValueError, match=f"device='{name}'; valid"),
            ):
                jax_bfc.trim(name)


def test_a_name_before_jax_has_started_starts_nothing_but_for_scratch() -> None:
    code = """
        import jax_bfc
        from jax._src import xla_bridge
        jax_bfc.configure(limit_bytes="8MiB", device="cpu:0")
        assert not xla_bridge._backends
        try:
            jax_bfc.scratch(1, device="cpu:7")
        except ValueError as error:
            print(error)
        print(jax_bfc.get_config().limit_bytes)
    """
    expected = ["device='cpu:7'; valid: 'cpu:0'", str(8 * MIB)]
    assert output_of(code).splitlines() == expected


def test_a_signal_handler_may_configure_read_and_fork_in_the_middle() -> None:
    """It comes in after each call of the native side, with the lock held."""
    code = """
        import os, signal
        import jax_bfc
        from jax_bfc import _core
        jax_bfc.configure(limit_bytes="8MiB")
        native, seen = _core.configure, []

        def handler(number, frame):
            config = jax_bfc.get_config()
            seen.append((config.growth_factor, config.limit_bytes >> 20))
            if len(seen) == 1:
                jax_bfc.configure(initial_bytes="1MiB")
            if (pid := os.fork()) == 0:
                jax_bfc.configure(limit_bytes="4MiB")
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0

        def interrupted(*args, **kwargs):
            refusal = native(*args, **kwargs)
            if len(seen) < 2:
                signal.raise_signal(signal.SIGUSR1)
            return refusal

        _core.configure = interrupted
        signal.signal(signal.SIGUSR1, handler)
        jax_bfc.memory_stats()  # JAX has started
        jax_bfc.configure(growth_factor=3.0, limit_bytes="16MiB")
        config = jax_bfc.get_config()
        print(config.growth_factor, config.initial_bytes, config.limit_bytes, seen)
    """
    expected = f"3.0 {MIB} {16 * MIB} [(2.0, 8), (2.0, 8)]"
    assert output_of(code) == expected


def test_an_interrupted_configure_changes_nothing() -> None:
    native = _core.configure
    calls = []

    def interrupted(*args: Any, **kwargs: Any) -> str | None:
        calls.append(args)
        refusal = native(*args, **kwargs)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return refusal

    with unchanged(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(_core, "configure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            jax_bfc.configure(limit_bytes=MIB)
    assert len(calls) == 2


def test_the_cpu_devices_share_one_budget() -> None:
    code = """
        import jax, jax_bfc
        a, b = jax.devices()
        jax_bfc.configure(limit_bytes="64MiB")
        size = 40 << 20
        with jax_bfc.scratch(size, device=a):
            try:
                with jax_bfc.scratch(size, device=b):
                    print("both fit")
            except jax_bfc.OutOfMemoryError as error:
                assert error.in_use == 0
                assert "on cpu:1 asked" in error.report
                assert "shared with another device's pool" in error.report
            assert jax_bfc.last_oom_report(a) is None
        assert jax_bfc.memory_stats(a)["pool_bytes"] >= size
        with jax_bfc.scratch(size, device=b):  # takes what the other has free
            assert jax_bfc.memory_stats(a)["pool_bytes"] == 0
        jax_bfc.configure(limit_bytes="16MiB", device=b)
        print(*[jax_bfc.get_config(d).limit_bytes >> 20 for d in (a, b, None)])
        jax_bfc.configure(limit_bytes="8MiB")
        print(*[jax_bfc.get_config(d).limit_bytes >> 20 for d in (a, b, None)])
    """
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    assert output_of(code, env=flags).splitlines() == ["64 16 64", "8 8 8"]
