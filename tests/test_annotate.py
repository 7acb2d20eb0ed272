"""Scratch as ranges in profilers."""

import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import jax
import pytest
from pools import MIB, fresh_pools, output_of, profiled_ranges

import jax_bfc


@pytest.fixture(autouse=True)
def _fresh_pools() -> Iterator[None]:
    with fresh_pools():
        yield


class Nvtx(types.ModuleType):
    """Stands in for the package: the ranges that are open, and all that ever were."""

    def __init__(self) -> None:
        super().__init__("nvtx")
        self.open: dict[int, str] = {}
        self.begun: list[str] = []

    def start_range(self, *, message: str, domain: str) -> int:
        assert domain == "jax_bfc"
        self.begun.append(message)
        self.open[len(self.begun)] = message
        return len(self.begun)

    def end_range(self, range_id: int) -> None:
        del self.open[range_id]


@pytest.fixture
def nvtx(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nvtx]:
    module = Nvtx()
    monkeypatch.setitem(sys.modules, "nvtx", module)
    yield module
    assert module.open == {}


def test_scratch_is_a_range_of_jax_profiler_with_its_bytes(tmp_path: Any) -> None:
    with jax.profiler.trace(tmp_path), jax_bfc.annotate():
        with jax_bfc.scratch(3 * MIB), jax_bfc.scratch(1000):
            pass
        with jax_bfc.scratch(0):
            pass
    ranges = profiled_ranges(tmp_path)
    assert sorted(ranges) == [
        ("scratch (python)", 0),
        ("scratch (python)", 1000),
        ("scratch (python)", 3 * MIB),
    ]


def test_a_range_lasts_from_allocation_to_free(nvtx: Nvtx) -> None:
    with jax_bfc.annotate("nvtx"), jax_bfc.scratch(1 << 20) as s:
        assert list(nvtx.open.values()) == ["scratch (python) 1.0 MiB"]
        view = memoryview(s)
        with jax_bfc.scratch(10):
            assert len(nvtx.open) == 2
        assert len(nvtx.open) == 1
        s.close()
        assert len(nvtx.open) == 1
        view.release()
        assert nvtx.open == {}


def test_what_is_held_before_and_after_the_block_has_no_range(nvtx: Nvtx) -> None:
    with jax_bfc.scratch(100) as before:
        with jax_bfc.annotate("nvtx"):
            before.close()
            after = jax_bfc.scratch(200).__enter__()
        assert nvtx.begun == ["scratch (python) 200 B"]
        assert nvtx.open == {}
        after.close()
        with jax_bfc.scratch(300):
            pass
    assert len(nvtx.begun) == 1


def test_several_threads_have_ranges(nvtx: Nvtx) -> None:
    def work() -> None:
        for _ in range(200):
            with jax_bfc.scratch(100), jax_bfc.scratch(200):
                pass

    with jax_bfc.annotate("nvtx"):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(nvtx.begun) == 4 * 200 * 2


def test_blocks_that_come_and_go_leave_no_range_open(nvtx: Nvtx) -> None:
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            with jax_bfc.scratch(100):
                pass

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(100):
        with jax_bfc.annotate("nvtx"), jax_bfc.scratch(5):
            pass
    stop.set()
    for thread in threads:
        thread.join()
    assert nvtx.begun.count("scratch (python) 5 B") == 100


def test_a_profiler_that_raises_harms_nothing(
    nvtx: Nvtx, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[Any] = []
    monkeypatch.setattr(
        sys, "unraisablehook", lambda given: raised.append(given.exc_type)
    )
    monkeypatch.setattr(nvtx, "start_range", None)
    with jax_bfc.annotate("nvtx"), jax_bfc.scratch(100) as s:
        assert s.nbytes == 100
    assert raised == [TypeError]
    assert jax_bfc.memory_stats()["num_live"] == 0


def test_one_block_at_a_time(nvtx: Nvtx) -> None:
    with (
        jax_bfc.annotate("nvtx"),
        pytest.raises(RuntimeError, match="another such block is open"),
        jax_bfc.annotate("nvtx"),
    ):
        pass
    with jax_bfc.annotate("nvtx"), jax_bfc.scratch(1):
        assert len(nvtx.open) == 1


def test_leaving_a_block_that_was_refused_leaves_the_other_open(nvtx: Nvtx) -> None:
    with jax_bfc.annotate("nvtx"), jax_bfc.scratch(1):
        other = jax_bfc.annotate("nvtx")
        with pytest.raises(RuntimeError, match="another such block is open"):
            other.__enter__()
        other.__exit__(None, None, None)
        assert len(nvtx.open) == 1


def test_a_block_that_nobody_holds_ends(nvtx: Nvtx) -> None:
    jax_bfc.annotate("nvtx").__enter__()
    with jax_bfc.annotate("nvtx"), jax_bfc.scratch(1):
        assert len(nvtx.open) == 1


def test_only_known_profilers() -> None:
    with pytest.raises(ValueError, match=r"profiler='perf'; valid: 'jax', 'nvtx'"):
        jax_bfc.annotate("perf")


def test_without_the_package_nvtx_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)
    with pytest.raises(ImportError, match="pip install nvtx"):
        jax_bfc.annotate("nvtx")


def test_a_forked_child_has_no_ranges_and_may_begin_its_own() -> None:
    code = """
import os, sys, types, warnings
warnings.simplefilter("ignore")  # of fork with threads
import jax_bfc
from jax_bfc import _core

log = []
def begin(name, nbytes):
    log.append(nbytes)
    return lambda: log.append(-nbytes)

ranges = _core.start_ranges(begin)
held = _core.allocate(0, 1, 256)
if (child := os.fork()) == 0:
    _core.allocate(0, 2, 256).close()
    ranges.close()  # not the child's
    mine = _core.start_ranges(begin)
    _core.allocate(0, 3, 256).close()
    held.close()
    mine.close()
    print(log, flush=True)
    os._exit(0)
os.waitpid(child, 0)
_core.allocate(0, 4, 256).close()
held.close()
print(log)
"""
    assert output_of(code).splitlines() == ["[1, 3, -3]", "[1, 4, -4, -1]"]


def test_daemon_threads_with_ranges_at_exit_do_no_harm() -> None:
    code = """
import threading, time
import jax, jax_bfc
jax.devices()

def work():
    while True:
        with jax_bfc.scratch(12345):
            pass

block = jax_bfc.annotate()
block.__enter__()
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.1)
print("ok")
"""
    for _ in range(3):
        assert output_of(code) == "ok"
