"""Growth of a fresh pool, and the step time of a jitted program with many kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _gpu_library import Library
from _gpu_measure import Cell, Effort, Results, Row, find, print_rows, take_turns
from _gpu_pairs import CUDA_ASYNC, OURS, XLA
from _measure import Case
from end_to_end import Side

import jax_bfc

_ffi: Any = jax.ffi
_Shape: Any = jax.ShapeDtypeStruct

_MIB = 1 << 20
_GIB = 1 << 30

_DRIVER = "the three driver calls"
_FIRST_USE = "first use, decoding included"
_FIRST = "its allocation"
_NEXT = "a step of a lane in use"
_MOST_GROWTH = 1.2


def measure_growth(library: Library, *, effort: Effort, results: Results) -> None:
    """First use of a pool whose first step is 1 GiB, beside the driver's part of it."""
    jax_bfc.configure(
        initial_bytes=_GIB,
        growth_factor=1.0,
        max_growth_bytes=_GIB,
        memory_fraction=0.5,
    )
    try:
        _measure_growth(library, effort=effort, results=results)
    finally:
        jax_bfc.reset()
        jax_bfc.configure(
            initial_bytes=2 * _MIB,
            growth_factor=2.0,
            max_growth_bytes=_GIB,
        )


def _measure_growth(library: Library, *, effort: Effort, results: Results) -> None:
    case = Case(workload="growth by 1 GiB")
    parts = {
        name: Row(case=case, side=name, ns_by_round=[]) for name in (_FIRST, _NEXT)
    }
    mapped = []

    def grow() -> list[float]:
        jax_bfc.reset()
        decoding, first, following = library.in_handler(
            "growth", "same_size", samples=3, pairs=0, graph=False
        )
        mapped.append(jax_bfc.memory_stats(jax.devices()[0])["pool_bytes"])
        for name, ns in ((_FIRST, first), (_NEXT, following)):
            parts[name].ns_by_round.append(ns)
            parts[name].samples.append(ns)
        return [decoding + first]

    def driver() -> list[float]:
        return [library.driver_growth(_GIB)]

    for warm in (grow, driver, grow, driver):
        warm()
    for part in parts.values():
        part.ns_by_round.clear()
        part.samples.clear()
    cells: list[Cell] = [
        (Row(case=case, side=_FIRST_USE, ns_by_round=[]), grow),
        (Row(case=case, side=_DRIVER, ns_by_round=[]), driver),
    ]
    rows = take_turns(cells, rounds=effort.growths, results=results)
    first_use = find(rows, _FIRST_USE, case.workload)
    alone = find(rows, _DRIVER, case.workload)
    if first_use is None or alone is None:
        return
    shown = [alone, first_use, *parts.values()]
    results.rows["growth"] = shown
    print_rows("growth of a pool", shown, reference=_DRIVER, scale=1e3, unit="us, once")
    results.add_bar(
        f"growth by 1 GiB on {_FIRST_USE}, over {_DRIVER}",
        _MOST_GROWTH,
        first_use.over(alone),
        "x",
    )
    if set(mapped) != {2 * _GIB}:
        raise RuntimeError(
            f"two steps of 1 GiB were to be mapped; pool_bytes was {set(mapped)}"
        )


# ---------------------------------------------------------------------------
# Step time.

_NONE = "no custom call"
_OUTPUT = "extra XLA output"
_MALLOC = "cudaMalloc"
# What it is called in gpu/steps.cc.
_SOURCES = {
    OURS: "jax_bfc",
    XLA: "xla",
    _OUTPUT: "output",
    CUDA_ASYNC: "malloc_async",
    _MALLOC: "malloc",
}
_WIDTH = 1024
_BATCH = 8
_SCRATCH_BYTES = 4 * _MIB


def _layer(source: str | None) -> Callable[[jax.Array], jax.Array]:
    """x / 2 + 1, by a custom call with scratch, or by XLA itself."""
    if source is None:
        return lambda x: 0.5 * x + 1.0
    result = _Shape((_BATCH, _WIDTH), jnp.float32)
    workspace = _Shape((_SCRATCH_BYTES,), jnp.uint8)
    results = (result, workspace) if source == "output" else (result,)
    call = _ffi.ffi_call(f"jax_bfc_benchmark_gpu_step_{source}", results)

    def layer(x: jax.Array) -> jax.Array:
        first: jax.Array = call(x, bytes=_SCRATCH_BYTES)[0]
        return first

    return layer


def measure_steps(library: Library, *, effort: Effort, results: Results) -> None:
    """Layers of one custom call and one matrix product each, jitted as one program."""
    random = np.random.default_rng(0)
    weights = jnp.asarray(
        random.standard_normal((_WIDTH, _WIDTH)) / np.sqrt(_WIDTH), jnp.float32
    )
    x = jnp.asarray(random.standard_normal((_BATCH, _WIDTH)), jnp.float32)
    for label, source in _SOURCES.items():
        symbol = f"gpu_step_{source}"
        library.register(f"jax_bfc_benchmark_{symbol}", symbol, ours=label == OURS)

    expected = None
    cells: list[Cell] = []
    case = Case(workload=f"{effort.layers} layers")
    for label in (_NONE, *_SOURCES):
        layer = _layer(_SOURCES.get(label))

        def program(x: jax.Array, weights: jax.Array, layer: Any = layer) -> jax.Array:
            for _ in range(effort.layers):
                x = layer(x) @ weights
            return x

        step = jax.jit(program)
        try:
            got = np.asarray(step(x, weights))
            if expected is None:
                expected = got
            # Loose: the products may be rounded as TensorFloat-32.
            np.testing.assert_allclose(got, expected, rtol=0.05, atol=0.05)
        except Exception as error:
            results.fail(f"{label}, {case.name}", error)
            continue
        side = Side(name=label, call=functools.partial(step, x, weights))
        row = Row(case=case, side=label, ns_by_round=[])
        cells.append((row, lambda side=side: [side.run() * 1e9]))  # type: ignore[misc]
    rows = take_turns(cells, rounds=effort.steps, results=results)
    results.rows["steps"] = rows
    print_rows(
        f"steps of {effort.layers} layers, each a custom call with "
        f"{_SCRATCH_BYTES // _MIB} MiB of scratch and a "
        f"{_BATCH}x{_WIDTH}x{_WIDTH} product; no graphs",
        rows,
        reference=OURS,
        scale=1e3,
        unit="us per step",
    )
