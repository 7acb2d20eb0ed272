"""Who may enter and leave a block of jax_bfc.scratch(), and what that ends."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from pools import fresh_pools, live, unchanged

import jax_bfc
from jax_bfc import _core


@pytest.fixture(autouse=True)
def pools() -> Iterator[None]:
    with fresh_pools():
        yield


def test_one_block_has_one_entry_at_a_time_in_a_thread() -> None:
    block = jax_bfc.scratch(300)
    with block as a:
        with unchanged(), pytest.raises(RuntimeError, match="is open already; call"):
            block.__enter__()
        assert a.ptr
    with block as b:  # again, once it was left
        assert b.ptr
    assert live() == 0


def test_leaving_what_is_not_open_does_nothing() -> None:
    block = jax_bfc.scratch(300)
    block.__exit__(None, None, None)
    with block as s:
        assert s.ptr
    block.__exit__(None, None, None)
    assert live() == 0
    with block as s:
        assert s.ptr


def test_leaving_in_another_thread_frees() -> None:
    stack = contextlib.ExitStack()
    stack.enter_context(jax_bfc.scratch(300))
    s = stack.enter_context(jax_bfc.scratch(300))
    thread = threading.Thread(target=stack.close)
    thread.start()
    thread.join()
    assert live() == 0
    with pytest.raises(ValueError, match="used after"):
        _ = s.ptr


def test_tasks_that_share_a_block_each_end_their_own() -> None:
    block = jax_bfc.scratch(300)
    seen: list[int] = []

    async def first(inside: asyncio.Event, left: asyncio.Event) -> None:
        with block:
            await inside.wait()
        left.set()

    async def second(inside: asyncio.Event, left: asyncio.Event) -> None:
        with block as s:
            inside.set()
            await left.wait()
            seen.append(s.ptr)
            assert live() == 1

    async def both() -> None:
        events = asyncio.Event(), asyncio.Event()
        await asyncio.gather(first(*events), second(*events))

    asyncio.run(both())
    assert len(seen) == 1
    assert live() == 0


def test_what_is_left_elsewhere_waits_where_it_is_not_clear_whose_it_is() -> None:
    block = jax_bfc.scratch(300)
    entered, leave = threading.Barrier(3), threading.Event()
    seen: list[int] = []

    def enter() -> None:
        s = block.__enter__()
        entered.wait()
        leave.wait()
        seen.append(s.ptr)

    threads = [threading.Thread(target=enter) for _ in range(2)]
    for thread in threads:
        thread.start()
    entered.wait()
    block.__exit__(None, None, None)
    assert live() == 2
    leave.set()
    for thread in threads:
        thread.join()
    assert len(seen) == 2
    block.__exit__(None, None, None)
    assert live() == 0


def test_a_block_that_is_dropped_ends() -> None:
    block = jax_bfc.scratch(300)
    block.__enter__()
    assert live() == 1
    del block
    assert live() == 0


@pytest.mark.parametrize(
    ("start", "make"),
    [
        ("allocate", lambda: jax_bfc.scratch(300)),
        ("open_peak", jax_bfc.peak),
        ("start_ranges", jax_bfc.annotate),
    ],
)
def test_an_interrupt_while_entering_leaves_nothing_open(
    start: str, make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    native = getattr(_core, start)

    def interrupted(*arguments: object) -> None:
        native(*arguments)
        raise KeyboardInterrupt  # as it comes when the call has returned

    block = make()
    with monkeypatch.context() as patch:
        patch.setattr(_core, start, interrupted)
        with pytest.raises(KeyboardInterrupt):
            block.__enter__()
    assert live() == 0
    with block:  # as if nothing had been
        pass


def test_threads_that_share_a_block_each_end_their_own() -> None:
    block = jax_bfc.scratch(300)
    entered = threading.Barrier(2)
    left = threading.Event()
    seen: list[int] = []

    def first() -> None:
        with block:
            entered.wait()
            entered.wait()
        left.set()

    def second() -> None:
        entered.wait()
        with block as s:
            entered.wait()
            left.wait()
            seen.append(s.ptr)

    threads = [threading.Thread(target=f) for f in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(seen) == 1
    assert live() == 0


def test_threads_never_share_memory() -> None:
    failures: list[str] = []

    def work(mark: int) -> None:
        for i in range(300):
            with jax_bfc.scratch(64 + (i * 977) % 5000) as s:
                array = np.frombuffer(memoryview(s), np.uint8)
                array[:] = mark
                if not (array == mark).all():
                    failures.append(f"{mark} in round {i}")

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert live() == 0


def test_memory_made_in_one_thread_is_freed_in_another() -> None:
    views = []

    def make() -> None:
        with jax_bfc.scratch(5000) as s:
            views.append(memoryview(s))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert live() == 1
    views.clear()
    assert live() == 0
