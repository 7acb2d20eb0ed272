"""Forks, threads that end, and the end of the process.

Every program here runs in a process of its own, with a timeout: a hang fails.
"""

import shutil
import subprocess

import pytest
from pools import output_of, run_python

from jax_bfc import _core

# Forks: `in_child()` runs there, and its exit status must be 0 within 20 s.
FORK = """
import os, signal, sys, threading, time
import jax_bfc
from jax_bfc import _core

def fork_and_check(in_child):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            in_child()
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    end = time.monotonic() + 20
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            assert status == 0, f"the child ended with {status}"
            return
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError("the child hangs")
        time.sleep(0.002)

def use(nbytes=4096):
    s = _core.allocate(0, nbytes, 256)
    memoryview(s)[:] = b"c" * nbytes
    s.close()
"""

# Threads that allocate until `stop` is set.
THREADS = """
stop = threading.Event()

def churn():
    while not stop.is_set():
        for nbytes in (100, 5000, 1 << 20, 3 << 20):
            _core.allocate(0, nbytes, 256).close()

threads = [threading.Thread(target=churn) for _ in range(4)]
for thread in threads:
    thread.start()
"""


def test_a_forked_child_starts_with_pools_as_new() -> None:
    code = """
jax_bfc.configure(limit_bytes="32MiB", growth_factor=3.0)
mine = _core.allocate(0, 1000, 256)

def child():
    stats = _core.memory_stats(0)
    assert stats["num_allocs"] == stats["pool_bytes"] == 0, stats
    assert stats["bytes_limit"] == 32 << 20, stats
    assert jax_bfc.get_config().growth_factor == 3.0
    use()
    assert _core.memory_stats(0)["num_allocs"] == 1
    jax_bfc.configure(limit_bytes="16MiB")
    jax_bfc.trim()
    jax_bfc.reset()

fork_and_check(child)
assert _core.memory_stats(0)["num_live"] == 1
assert jax_bfc.get_config().limit_bytes == 32 << 20
print("ok")
"""
    assert output_of(FORK + code) == "ok"


def test_what_the_parent_allocated_is_harmless_to_free_in_the_child() -> None:
    code = """
mine = _core.allocate(0, 1000, 256)
view = memoryview(mine)
view[:] = b"p" * 1000

def child():
    use(1000)  # the child's own chunk with the same slot, entry and generation
    theirs = _core.allocate(0, 1000, 256)
    assert bytes(view) == b"p" * 1000
    view.release()
    mine.close()
    assert _core.memory_stats(0)["num_live"] == 1
    theirs.close()
    assert _core.memory_stats(0)["num_live"] == 0

fork_and_check(child)
assert bytes(view) == b"p" * 1000
view.release()
mine.close()
assert _core.memory_stats(0)["num_live"] == 0
print("ok")
"""
    assert output_of(FORK + code) == "ok"


def test_a_fork_while_threads_allocate_never_hangs() -> None:
    code = """
def child():
    use()
    jax_bfc.configure(limit_bytes=1 << 30)
    jax_bfc.get_config()
    jax_bfc.trim()
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert _core.memory_stats(0)["num_live"] == 0

for _ in range(30):
    fork_and_check(child)
stop.set()
for thread in threads:
    thread.join()
print("ok")
"""
    assert output_of(FORK + THREADS + code) == "ok"


def test_a_fork_while_threads_configure_never_hangs() -> None:
    code = """
stop = threading.Event()

def configure():
    while not stop.is_set():
        jax_bfc.configure(limit_bytes=1 << 30)
        jax_bfc.get_config()

threads = [threading.Thread(target=configure) for _ in range(2)]
for thread in threads:
    thread.start()

def child():
    jax_bfc.configure(limit_bytes=2 << 30)
    assert jax_bfc.get_config().limit_bytes == 2 << 30
    use()

for _ in range(30):
    fork_and_check(child)
stop.set()
for thread in threads:
    thread.join()
print("ok")
"""
    assert output_of(FORK + code) == "ok"


def test_a_child_can_start_jax_and_use_it() -> None:
    code = """
def child():
    with jax_bfc.scratch(1000) as s:
        memoryview(s)[:] = bytes(1000)
    assert jax_bfc.memory_stats()["num_allocs"] == 1

use()
fork_and_check(child)
print("ok")
"""
    assert output_of(FORK + code) == "ok"


def test_children_of_children_have_pools_of_their_own() -> None:
    code = """
def child():
    use()
    fork_and_check(grandchild)
    assert _core.memory_stats(0)["num_allocs"] == 1

def grandchild():
    use()
    use()
    assert _core.memory_stats(0)["num_allocs"] == 2

fork_and_check(child)
print("ok")
"""
    assert output_of(FORK + code) == "ok"


def test_a_multiprocessing_fork_pool_works_and_ends() -> None:
    code = """
import multiprocessing

def work(n):
    use(n)
    return _core.memory_stats(0)["num_live"]

keep = _core.allocate(0, 500, 256)
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map_async(work, range(1, 50)).get(timeout=30) == [0] * 49
process = multiprocessing.get_context("fork").Process(target=use)
process.start()
process.join(timeout=30)
assert process.exitcode == 0, process.exitcode
print("ok")
"""
    assert output_of(FORK + code) == "ok"


# ---------------------------------------------------------------------------
# The end of threads and of the process.


def test_threads_that_end_leave_their_cache_to_be_flushed() -> None:
    code = """
import threading
import jax_bfc
from jax_bfc import _core

for _ in range(200):  # more than there are slots
    thread = threading.Thread(target=lambda: _core.allocate(0, 4096, 256).close())
    thread.start()
    thread.join()
stats = _core.memory_stats(0)
assert stats["num_live"] == 0, stats
assert stats["cached_bytes"] <= 64 * 4096, stats
assert jax_bfc.trim() == stats["pool_bytes"]
assert _core.memory_stats(0)["pool_bytes"] == 0
print("ok")
"""
    assert output_of(code) == "ok"


def test_more_threads_than_slots_work_at_once() -> None:
    code = """
import threading
from jax_bfc import _core

barrier = threading.Barrier(100)

def work():
    barrier.wait()
    for i in range(50):
        s = _core.allocate(0, 1000 + i, 256)
        memoryview(s)[:4] = b"mine"
        s.close()

threads = [threading.Thread(target=work) for _ in range(100)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
stats = _core.memory_stats(0)
assert (stats["num_allocs"], stats["num_live"]) == (5000, 0), stats
print("ok")
"""
    assert output_of(code) == "ok"


def test_scratch_that_is_alive_at_exit_is_harmless() -> None:
    code = """
import numpy as np
import jax, jax_bfc

block = jax_bfc.scratch(1000)
s = block.__enter__()
view = memoryview(s)
array = np.from_dlpack(s)
capsule = s.__dlpack__()
devices = jax.devices()
print("ok")
"""
    done = run_python(code)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
    assert done.stderr == ""


def test_atexit_functions_can_use_scratch() -> None:
    code = """
import atexit
import jax_bfc

@atexit.register
def last():
    with jax_bfc.scratch(99) as s:
        memoryview(s)[:] = bytes(99)
        print(jax_bfc.memory_stats()["num_live"], jax_bfc.trim())
"""
    assert output_of(code) == "1 0"


def test_an_object_that_frees_while_modules_are_torn_down_is_harmless() -> None:
    code = """
import os, sys
from jax_bfc import _core

class Last:
    def __init__(self):
        self.allocate = _core.allocate
        self.write = os.write
        self.held = _core.allocate(0, 100, 256)

    def __del__(self):
        self.allocate(0, 200, 256).close()
        self.held.close()
        self.write(1, b"ok")

sys.last = Last()
"""
    assert output_of(code) == "ok"


@pytest.mark.parametrize("attempt", range(5))
def test_daemon_threads_that_allocate_at_exit_do_no_harm(attempt: int) -> None:
    code = """
import threading, time
import numpy as np
import jax, jax_bfc

jax.devices()

def work():
    while True:
        with jax_bfc.scratch(12345) as s:
            np.frombuffer(s, np.uint8)[:] = 1
        with jax_bfc.scratch(3 << 20):
            jax_bfc.memory_stats()
        jax_bfc.trim()

for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.1)
print("ok")
"""
    done = run_python(code)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def test_scratch_at_exit_does_not_start_jax_again() -> None:
    code = """
import atexit

def last():  # after JAX's own, which drops its backends
    before = list(xla_bridge._backends)
    with jax_bfc.scratch(100) as s, jax_bfc.scratch(200, device=device) as t:
        print(s.nbytes, t.nbytes, list(xla_bridge._backends) == before)

atexit.register(last)
import jax, jax_bfc
from jax._src import xla_bridge
device = jax.devices()[0]
"""
    assert output_of(code) == "100 200 True"


def test_exit_waits_for_a_thread_that_asks_jax_for_its_default_device() -> None:
    code = """
import atexit, threading, time

def last():  # after JAX's own, which drops its backends
    before = list(xla_bridge._backends)
    time.sleep(1)
    print(list(xla_bridge._backends) == before)

atexit.register(last)
import jax, jax_bfc
from jax._src import xla_bridge
jax.devices()
local_devices, inside = jax.local_devices, threading.Event()

def slow(*args, **kwargs):
    jax.local_devices = local_devices
    inside.set()
    time.sleep(0.5)
    return local_devices(*args, **kwargs)

jax.local_devices = slow
threading.Thread(target=lambda: jax_bfc.scratch(1), daemon=True).start()
inside.wait()
"""
    assert output_of(code) == "True"


def test_the_library_shows_nothing_but_its_two_entries() -> None:
    """It is visible to the whole process: another name would hide XLA's own."""
    if (nm := shutil.which("nm")) is None:
        pytest.skip("no nm, which comes with the compiler, to look with")
    command = [nm, "-D", "--defined-only", _core.__file__]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1].split("@")[0] for line in lines.splitlines()}
    assert names == {"PyInit__core", "jax_bfc_get_api"}
