"""jax_bfc.on_oom()."""

import copy
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pools import LIMIT, MIB, fresh_pools, output_of, run_python, unchanged

import jax_bfc


@pytest.fixture(autouse=True)
def pools() -> Iterator[None]:
    with fresh_pools():
        yield


@pytest.fixture
def on_oom() -> Iterator[Callable[[Callable[[str], object]], jax_bfc.OomHandle]]:
    """jax_bfc.on_oom, undone after the test."""
    handles = []

    def add(callback: Callable[[str], object]) -> jax_bfc.OomHandle:
        handles.append(jax_bfc.on_oom(callback))
        return handles[-1]

    yield add
    for handle in handles:
        handle.remove()


def test_what_a_callback_frees_serves_the_request(on_oom: Any) -> None:
    held = jax_bfc.scratch(LIMIT - MIB)
    reports = []

    def free(report: str) -> None:
        reports.append(report)
        held.__exit__(None, None, None)
        assert jax_bfc.trim() >= 0

    held.__enter__()
    on_oom(free)
    with jax_bfc.scratch(8 * MIB):
        pass
    assert len(reports) == 1
    assert "kernel '(python)' on cpu:0 asked for 8,388,608 bytes" in reports[0]
    assert jax_bfc.memory_stats()["num_failures"] == 0
    assert jax_bfc.last_oom_report() is None


def test_a_request_that_still_does_not_fit_keeps_its_error(on_oom: Any) -> None:
    calls = []

    def ask(report: str) -> None:
        calls.append(report)
        with pytest.raises(jax_bfc.OutOfMemoryError), jax_bfc.scratch(3 * LIMIT):
            pass  # at once: no callback inside a callback

    on_oom(ask)
    with pytest.raises(jax_bfc.OutOfMemoryError) as caught, jax_bfc.scratch(2 * LIMIT):
        pass
    assert caught.value.requested == 2 * LIMIT
    assert jax_bfc.last_oom_report() == caught.value.report
    assert len(calls) == 1


def test_what_a_callback_raises_is_reported_and_not_lost(
    on_oom: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    calls: list[str] = []

    def fail(report: str) -> None:
        raise ZeroDivisionError("in a callback")

    on_oom(fail)
    on_oom(calls.append)
    with pytest.raises(jax_bfc.OutOfMemoryError), jax_bfc.scratch(2 * LIMIT):
        pass
    assert [str(hook.exc_value) for hook in unraisable] == ["in a callback"]
    assert len(calls) == 1  # the others are called all the same


def test_removing_a_callback_ends_it(on_oom: Any) -> None:
    calls: list[str] = []
    first, second = on_oom(calls.append), on_oom(calls.append)
    first.remove()
    first.remove()
    with pytest.raises(jax_bfc.OutOfMemoryError), jax_bfc.scratch(2 * LIMIT):
        pass
    assert len(calls) == 1
    second.remove()
    with pytest.raises(jax_bfc.OutOfMemoryError), jax_bfc.scratch(2 * LIMIT):
        pass
    assert len(calls) == 1


def test_a_callback_may_remove_itself_and_wait_for_other_threads(on_oom: Any) -> None:
    calls: list[str] = []

    def once(report: str) -> None:
        calls.append(report)
        handle.remove()
        thread = threading.Thread(target=lambda: jax_bfc.scratch(100).__enter__())
        thread.start()
        thread.join()

    handle = on_oom(once)
    for _ in range(2):
        with pytest.raises(jax_bfc.OutOfMemoryError), jax_bfc.scratch(2 * LIMIT):
            pass
    assert len(calls) == 1


@pytest.mark.parametrize("callback", [None, 3, "print"])
def test_what_cannot_be_called_is_refused(callback: Any) -> None:
    with unchanged(), pytest.raises(TypeError, match="valid: a function of one"):
        jax_bfc.on_oom(callback)


def test_the_end_of_the_interpreter_is_safe() -> None:
    code = """
        import threading, time
        import jax_bfc
        from jax_bfc import _core
        jax_bfc.configure(limit_bytes="4MiB")
        jax_bfc.on_oom(lambda report: time.sleep(0.0001))
        def ask():
            while True:
                assert isinstance(_core.allocate(0, 8 << 20, 256), dict)
        for _ in range(4):
            threading.Thread(target=ask, daemon=True).start()
        time.sleep(0.05)
        print("ok")
    """
    for _ in range(3):
        done = run_python(code)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "ok"
        assert done.stderr == ""


def test_a_forked_child_keeps_its_callbacks() -> None:
    code = """
        import os
        import jax_bfc
        from jax_bfc import _core
        jax_bfc.configure(limit_bytes="4MiB")
        calls = []
        jax_bfc.on_oom(calls.append)
        _core.allocate(0, 8 << 20, 256)
        pid = os.fork()
        if pid == 0:
            _core.allocate(0, 8 << 20, 256)
            os._exit(0 if len(calls) == 2 else 1)
        print(os.waitpid(pid, 0)[1], len(calls))
    """
    assert output_of(code) == "0 1"


@pytest.mark.parametrize(
    "again",
    [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))],
)
def test_the_error_can_be_copied_and_pickled(again: Callable[[Any], Any]) -> None:
    with pytest.raises(jax_bfc.OutOfMemoryError) as caught, jax_bfc.scratch(2 * LIMIT):
        pass
    caught.value.add_note("in a worker")
    other = again(caught.value)
    assert type(other) is jax_bfc.OutOfMemoryError
    assert vars(other) == vars(caught.value)
    assert str(other) == other.report == caught.value.report
    assert other.__notes__ == ["in a worker"]


def test_what_a_callback_knows_is_let_go_at_the_end() -> None:
    code = """
        import jax_bfc

        def free_something(report):
            print(report)

        jax_bfc.on_oom(free_something)
        with jax_bfc.scratch(100) as s, jax_bfc.peak() as p:
            pass
    """
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
