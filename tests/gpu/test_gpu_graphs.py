"""Scratch inside CUDA graphs: what it holds, who may touch it, when it ends.

Each program runs in a process of its own, since XLA reads its flags when it starts.
Every kernel writes its scratch and looks later whether it is still what it wrote.
What is counted here is counted on the host: a sum that lies in memory of the device
may itself be written over by the fault that it is to count.
"""

import pathlib
import textwrap

import jax
import pytest

from .graph_program import run

# Two programs in turns, one a chain and one of independent branches, while arrays
# of the sizes of their scratch come, go, and are looked at.
CHURN = """
    sizes = [64 << 10, MIB, 300_000, 2 * MIB, 4000, 512 << 10]
    chained = [(10 + i, n) for i, n in enumerate(sizes)]
    branched = [(20 + i, n + 4096) for i, n in enumerate(sizes)]
    programs = [chain(chained, target=TARGET), branches(branched, target=TARGET)]

    runs = wrong = other_step = verified = corrupted = 0
    live, pending = [], []
    def collect():
        global wrong, other_step
        for result, step in pending:
            got_step, got_wrong = np.asarray(result).tolist()
            wrong += got_wrong != 0
            other_step += got_step != step
        pending.clear()
    def step_of(operand, step):
        global pending, runs
        results = [(program(operand), step) for program in programs]
        runs += len(results)
        # Those of the step before, so that this one runs meanwhile.
        collect()
        pending = results
    def look_at(arrays):
        global corrupted, verified
        for array, value in arrays:
            corrupted += int(np.count_nonzero(np.asarray(array) != value))
            verified += array.size
    states = [state(k) for k in range(3)]
    for round in range(24):
        for n in 2 * sizes:
            value = np.uint32(len(live) + 1000 * round)
            filled = np.full(n // 4, value, np.uint32)
            live.append((jax.device_put(filled, device), value))
        for _ in range(50):
            step_of(states[round % 3], round % 3)
        look_at(live[::2])
        live = live[1::2]
    steady = kernels.GraphCalls(1)
    moving = [state(7) for _ in range(20)]
    for _ in range(3):
        for operand in moving:
            step_of(operand, 7)
    collect()
    look_at(live)
    eager, captured = kernels.GraphCalls(0), kernels.GraphCalls(1)
    print(json.dumps({
        "wrong": wrong, "other_step": other_step,
        "corrupted": corrupted, "verified": verified,
        "runs": runs, "eager": eager, "captured": captured, "steady": steady,
        "replays": (runs * len(sizes) - eager - captured) / len(sizes),
        "addresses": [kernels.GraphAddresses(s) for s, _ in chained + branched],
        "pinned": stats("pinned_bytes"),
        "expected": sum(rounded(n) for _, n in chained + branched),
    }))
"""


@pytest.mark.parametrize("mode", ["LHS", "SERIALIZE", "CONCURRENT"])
def test_replays_touch_nothing_but_their_own_scratch(
    build: pathlib.Path, mode: str
) -> None:
    it = run("TARGET = 'graphs.Layer'" + textwrap.dedent(CHURN), build, mode=mode)
    assert (it["wrong"], it["other_step"], it["corrupted"]) == (0, 0, 0), it
    assert it["verified"] > 10_000_000, it
    # Not in vain: there were graphs, they were replayed, and captured again.
    assert it["replays"] >= 1000, it
    assert it["captured"] > it["steady"] >= 12, it
    assert it["pinned"] == it["expected"], it
    assert set(it["addresses"]) == {1}, it


def test_scratch_of_xla_is_overwritten_by_replays(build: pathlib.Path) -> None:
    """What jax_bfc is for: if this fails, docs/cuda_graphs.md says too much."""
    target = """
        TARGET = "graphs.LayerOfXla"
        handler = capsule("kGraphLayerOfXla")
        jax.ffi.register_ffi_target(TARGET, handler, platform="CUDA")
    """
    it = run(textwrap.dedent(target) + textwrap.dedent(CHURN), build)
    assert it["captured"] > 0, it
    assert 0 < it["corrupted"] <= it["verified"], (
        f"jax {jax.__version__} does it no longer: XLA's own ScratchAllocator in CUDA "
        f"graphs spoilt no array here: {it}"
    )


MEMORY = """
    sizes = [1 + 1000 * i for i in range(100)]
    expected = sum(rounded(n) for n in sizes)
    layers = chain(list(enumerate(sizes)), pause_us=1)
    right(layers, 3, times=4)
    check("pinned", stats("pinned_bytes"), expected)
    check("pinned by its kernel", pinned("graphs.Layer"), expected)
    check("in use", stats("bytes_in_use"), expected)
    check("call sites", jax_bfc.kernel_stats(device)["graphs.Layer"].call_sites, 100)
    before = kernels.GraphCalls(1)
    right(layers, 4, times=2, operands=5)
    check_that("captured again", kernels.GraphCalls(1) > before)
    check("pinned after other captures", stats("pinned_bytes"), expected)
    check("addresses", {kernels.GraphAddresses(s) for s in range(100)}, {1})
    # What a graph holds is neither trimmed nor reset.
    jax_bfc.trim(device)
    try:
        jax_bfc.reset(device)
        raise AssertionError("reset() took the memory of graphs")
    except RuntimeError as error:
        print(error)
    right(layers, 5, times=3)
    check("pinned after all that", stats("pinned_bytes"), expected)

    del layers
    drop_programs()
    wait_until("nothing pinned", lambda: stats("pinned_bytes") == 0)
    check("in use by none", stats("bytes_in_use"), 0)
    check("pinned by none", pinned("graphs.Layer"), 0)
    check("no call sites", jax_bfc.kernel_stats(device)["graphs.Layer"].call_sites, 0)
    jax_bfc.trim(device)
    check("mapped after trim", stats("pool_bytes"), 0)
    jax_bfc.reset(device)

    # A program that dies while its last replay runs. There is no room for
    # another 32 MiB but its own.
    jax_bfc.configure(limit_bytes=80 * MIB, growth_factor=1.0,
                      max_growth_bytes=2 * MIB)
    check_that("a gate", kernels.HoldClose())
    kernels.HoldOpen(0)
    slow = chain([(500, 32 * MIB)], pause_us=None)
    s = state(9)
    before = kernels.GraphCalls(1)
    for _ in range(3):
        slow(s).block_until_ready()
    check("pinned by the slow one", stats("pinned_bytes"), 32 * MIB)
    jax_bfc.trim(device)
    jax_bfc.configure(limit_bytes=56 * MIB)
    check("while it lives, RESOURCE_EXHAUSTED", kernels.GraphSpoil(32 * MIB), 8)
    captured = kernels.GraphCalls(1)
    check_that("captured", captured > before)
    kernels.HoldClose()
    last = slow(s)
    running = not last.is_ready()
    del slow
    drop_programs()
    dropped_while_running = not last.is_ready()
    kernels.HoldOpen(500)
    refused = 0
    end = time.monotonic() + 10
    while (status := kernels.GraphSpoil(32 * MIB)) == 8 and time.monotonic() < end:
        refused += 1
        time.sleep(0.001)
    check("the other's status, in the end", status, 0)
    check("its step and wrong words", np.asarray(last).tolist(), [9, 0])
    print(json.dumps({"running": running, "refused": refused,
                      "dropped_while_running": dropped_while_running,
                      "captured_again": kernels.GraphCalls(1) - captured}))
"""


def test_graphs_hold_the_sum_of_their_scratch_until_their_program_dies(
    build: pathlib.Path,
) -> None:
    it = run(MEMORY, build)
    assert it["running"], it  # else the last part says nothing


OTHERS = """
    # Registered by JAX alone: pinned for life, at each capture anew.
    jax.ffi.register_ffi_target(
        "graphs.Plain", capsule("kGraphLayer"), platform="CUDA")
    plain = chain([(i, 100_000) for i in range(3)], target="graphs.Plain")
    said = stderr_of(lambda: right(plain, 1, times=3, operands=3))
    captured = kernels.GraphCalls(1)
    check_that(f"captures: {captured}", captured >= 3)
    for_life = captured * rounded(100_000)
    check("pinned for life", stats("pinned_bytes"), for_life)
    check("counted apart", stats("pinned_for_life_bytes"), for_life)
    check("by the kernel", pinned("(unregistered)"), for_life)
    check("warnings in " + repr(said), said.count("jax_bfc: kernel"), 1)
    check_that("it names the way out", "jax_bfc.register_ffi_target" in said)
    del plain
    drop_programs()
    time.sleep(0.2)
    check("pinned for life after its death", stats("pinned_for_life_bytes"), for_life)

    # With state of its own: released with that.
    make = ctypes.pythonapi.PyCapsule_New
    make.restype = ctypes.py_object
    make.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    def pointer(symbol):
        function = getattr(kernels, symbol)
        function.restype = ctypes.c_void_p
        return make(function(), None, None)
    jax.ffi.register_ffi_type(
        "graphs.OwnState",
        {"type_id": pointer("GraphOwnTypeId"),
         "type_info": pointer("GraphOwnTypeInfo")},
        platform="CUDA")
    stages = {"instantiate": capsule("kGraphMakeOwn"),
              "execute": capsule("kGraphWithOwn")}
    jax_bfc.register_ffi_target("graphs.Own", stages, platform="CUDA")
    jax.ffi.register_ffi_target("graphs.OwnPlain", stages, platform="CUDA")
    for first, target in ((30, "graphs.Own"), (40, "graphs.OwnPlain")):
        sites = [(first + i, 70_000 + 256 * i) for i in range(3)]
        own = chain(sites, target=target)
        right(own, 2, times=3, operands=3)
        check(target, pinned("graphs.own"), sum(rounded(n) for _, n in sites))
        check("its addresses", [kernels.GraphAddresses(s) for s, _ in sites], [1] * 3)
        del own
        drop_programs()
        wait_until(target + " released", lambda: pinned("graphs.own") == 0)
    check("nothing more for life", stats("pinned_bytes"), for_life)

    # Freed and taken again within a call.
    jax_bfc.register_ffi_target(
        "graphs.Pieces", capsule("kGraphPieces"), platform="CUDA")
    n = 200_000
    pieces = chain([(i, n) for i in range(50, 54)], target="graphs.Pieces")
    right(pieces, 5, times=20, operands=5)
    check("pieces", pinned("graphs.Pieces"), 4 * (2 * rounded(n) + rounded(n // 2)))
    check("addresses of pieces",
          {kernels.GraphAddresses(10 * s + k) for s in range(50, 54) for k in range(3)},
          {1})
    del pieces
    drop_programs()
    wait_until("pieces released", lambda: stats("pinned_bytes") == for_life)
    print(json.dumps({"captured": kernels.GraphCalls(1)}))
"""


def test_pins_belong_to_the_call_site_or_else_to_the_process(
    build: pathlib.Path,
) -> None:
    assert run(OTHERS, build)["captured"] > 0


BUSY = """
    # A loop: called at each iteration.
    def body(_, s):
        s = layer(layer(s, 700, 100_000, pause_us=1), 701, 300_000, pause_us=1)
        return s + jnp.array([1, 0], jnp.uint32)
    loop = jax.jit(lambda s: jax.lax.fori_loop(0, 50, body, s))
    for step in (7, 8, 9):
        check("the loop", np.asarray(loop(state(step))).tolist(), [step + 50, 0])
    print("loop:", kernels.GraphCalls(0), "eager,", kernels.GraphCalls(1), "captured")
    del loop
    drop_programs()

    # Memory grows in the middle of captures.
    jax_bfc.reset(device)
    jax_bfc.configure(limit_bytes="2GiB", initial_bytes=2 * MIB, growth_factor=1.0,
                      max_growth_bytes=2 * MIB)
    sites = [(800 + i, (i + 1) * MIB + 1000 * i) for i in range(16)]
    growing = chain(sites)
    right(growing, 1, times=1)
    before = stats("num_growths"), kernels.GraphCalls(1)
    right(growing, 2, times=3)
    growths = stats("num_growths") - before[0]
    check_that("captured", kernels.GraphCalls(1) > before[1])
    check_that(f"growths under capture: {growths}", growths >= 5)
    check("pinned", pinned("graphs.Layer"), sum(rounded(n) for _, n in sites))
    del growing
    drop_programs()

    # Others ask the driver for all sorts of things meanwhile.
    sys.setswitchinterval(1e-4)
    stop = threading.Event()
    counts, errors = collections.Counter(), []
    limits = [2048 * MIB, 3072 * MIB]
    def configure():
        limits.reverse()
        jax_bfc.configure(limit_bytes=limits[0], device=device)
    def scratch():
        with jax_bfc.scratch(3 * MIB, device=device):
            pass
    def again(name, function):
        try:
            while not stop.is_set():
                function()
                counts[name] += 1
        except Exception as error:
            errors.append(f"{name}, call {counts[name]}: {error!r}")
    functions = {
        "trim": lambda: jax_bfc.trim(device), "configure": configure,
        "memory_stats": lambda: jax_bfc.memory_stats(device),
        "kernel_stats": lambda: jax_bfc.kernel_stats(device), "scratch": scratch,
    }
    threads = [threading.Thread(target=again, args=pair) for pair in functions.items()]
    captured = kernels.GraphCalls(1)
    for thread in threads:
        thread.start()
    try:
        for round in range(5):
            sites = [(1000 + 100 * round + i, (i + 1) * (MIB // 2) + 4096 * round)
                     for i in range(8)]
            busy = chain(sites)
            right(busy, 10 + round, times=2, operands=20)
            check(f"pinned in round {round}", pinned("graphs.Layer"),
                  sum(rounded(n) for _, n in sites))
            del busy
            drop_programs()
            wait_until("released", lambda: pinned("graphs.Layer") == 0)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        print("beside:", dict(counts), errors, flush=True)
    check("errors beside", errors, [])
    for name in functions:
        check_that(f"calls of {name}: {counts[name]}", counts[name] > 0)
    print(json.dumps({"captured": kernels.GraphCalls(1) - captured}))
"""


def test_nothing_that_is_asked_of_the_driver_spoils_a_capture(
    build: pathlib.Path,
) -> None:
    assert run(BUSY, build)["captured"] >= 2 * 5 * 8
