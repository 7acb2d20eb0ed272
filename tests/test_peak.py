"""jax_bfc.peak() and jax_bfc.print_summary()."""

import importlib.util
import re
import threading
from collections.abc import Iterator

import jax
import pytest
from pools import MIB, fresh_pools, output_of, unchanged

import jax_bfc


@pytest.fixture(autouse=True)
def pools() -> Iterator[None]:
    with fresh_pools():
        yield


def test_a_peak_is_that_of_its_block() -> None:
    with jax_bfc.scratch(16 * MIB):
        pass
    with jax_bfc.scratch(1000), jax_bfc.peak() as p:
        assert p.bytes == 1024  # what was in use before
        with jax_bfc.scratch(2 * MIB):
            assert p.bytes == 2 * MIB + 1024
        with jax_bfc.scratch(MIB):
            pass
    with jax_bfc.scratch(16 * MIB):
        pass
    assert p.bytes == 2 * MIB + 1024
    assert p.by_kernel == {"(python)": 2 * MIB + 1024}
    assert repr(p) == f"Peak(bytes={2 * MIB + 1024}, by_kernel={p.by_kernel})"


def test_blocks_nest_and_leave_the_statistics_alone() -> None:
    with jax_bfc.scratch(8 * MIB):
        pass
    with jax_bfc.peak() as outer:
        with jax_bfc.scratch(4 * MIB):
            pass
        with jax_bfc.peak() as inner, jax_bfc.scratch(MIB):
            pass
        assert jax_bfc.memory_stats()["peak_bytes_in_use"] == 8 * MIB
        jax_bfc.reset_peak_memory_stats()
        assert jax_bfc.memory_stats()["peak_bytes_in_use"] == 0
    assert inner.bytes == MIB
    assert outer.bytes == 4 * MIB
    assert jax_bfc.memory_stats()["peak_bytes_in_use"] == 0


def test_a_peak_is_exact_for_many_threads() -> None:
    count = 4
    barrier = threading.Barrier(count)

    def work() -> None:
        for _ in range(20):
            with jax_bfc.scratch(5000):
                barrier.wait(30)
            barrier.wait(30)

    with jax_bfc.peak() as p:
        threads = [threading.Thread(target=work) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert p.bytes == count * 5120


def test_a_block_that_raises_ends() -> None:
    p = jax_bfc.peak()
    with pytest.raises(ZeroDivisionError), p, jax_bfc.scratch(100):
        raise ZeroDivisionError
    assert p.bytes == 256
    with p:  # again
        assert p.bytes == 0
        with pytest.raises(RuntimeError, match="this block is open already"):
            p.__enter__()


def test_a_block_that_was_never_entered_has_no_figures() -> None:
    p = jax_bfc.peak()
    assert repr(p) == "Peak(never entered)"
    with pytest.raises(RuntimeError, match="this block was never entered"):
        _ = p.bytes
    with pytest.raises(RuntimeError, match="this block was never entered"):
        _ = p.by_kernel
    with p:
        pass
    p.__exit__(None, None, None)
    assert p.bytes == 0


def test_a_reset_inside_a_block_keeps_its_peak() -> None:
    with jax_bfc.peak(jax.devices()[0]) as p:
        with jax_bfc.scratch(MIB):
            pass
        jax_bfc.reset()
        with jax_bfc.scratch(1000):
            pass
    assert p.bytes == MIB


def test_a_device_of_the_wrong_type_is_refused() -> None:
    with unchanged(), pytest.raises(TypeError, match=r"valid: a jax\.Device"):
        jax_bfc.peak("cpu").__enter__()


def test_a_block_is_harmless_in_a_forked_child() -> None:
    code = """
        import os
        from jax_bfc import _core
        block = _core.open_peak(0)
        s = _core.allocate(0, 1000, 256)
        pid = os.fork()
        if pid == 0:
            assert block.read() == (0, {})
            _core.allocate(0, 5000, 256).close()
            block.close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        print(block.read())
    """
    assert output_of(code) == "(1024, {'(python)': 1024})"


def test_the_summary_has_every_kernel(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with jax_bfc.scratch(3 * MIB):
        jax_bfc.print_summary()
        rich = capsys.readouterr().out
        with monkeypatch.context() as patch:
            patch.setattr(importlib.util, "find_spec", lambda name: None)
            jax_bfc.print_summary()
    plain = capsys.readouterr().out
    for text in (rich, plain):
        assert "cpu:0: 3.0 MiB in use of 64.0 MiB, peak 3.0 MiB" in text
        assert re.search(r"\(python\)\W+1\W+1\W+3.0 MiB", text)


def test_the_summary_cuts_no_name_and_has_no_two_columns_alike_on_80_columns() -> None:
    code = """
        import sys
        import rich.console
        import jax_bfc, jax_bfc._summary
        from jax_bfc import _core
        row = {
            "calls": 1234567, "num_allocs": 2345678, "bytes_in_use": 1 << 30,
            "peak_bytes_in_use": 3 << 30, "largest_alloc_size": 5 << 20,
            "total_allocated_bytes": 7 << 40, "pinned_bytes": 1 << 20,
            "num_failures": 12,
        }
        names = [f"segmented_reduction_over_rows:{i}" for i in "abc"]
        _core.kernel_stats = lambda index: dict.fromkeys(names, row)
        class Terminal(rich.console.Console):
            is_terminal = True
        rich.console.Console = Terminal
        jax_bfc.memory_stats()
        jax_bfc.print_summary()
    """
    done = output_of(code, env={"COLUMNS": "80", "TERM": "dumb"})
    lines = done.splitlines()
    for name in "abc":
        assert f"segmented_reduction_over_rows:{name}" in lines
    (header,) = [line.split() for line in lines if "calls" in line]
    assert " ".join(header) == "calls allocs in use peak largest total pinned failed"
    assert done.count("7.0 TiB") == 3
    assert max(map(len, lines[1:])) <= 80


def test_a_summary_of_nothing_says_so() -> None:
    code = """
        import jax_bfc
        jax_bfc.print_summary()
    """
    assert output_of(code) == "jax_bfc: no device has used scratch yet"
