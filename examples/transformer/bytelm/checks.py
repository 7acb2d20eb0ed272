"""Checks every kernel's results and gradients against plain JAX.

The reference computes in float32 at the highest precision, from operands that are
rounded to what the kernel takes.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from bytelm import model, reference
from bytelm.ops import PLAIN, Ops

Array = jax.Array
Floats = NDArray[np.float32]
Operation = Callable[..., Array]


@dataclass(frozen=True)
class Check:
    """The largest error of one result, relative to its largest element."""

    operation: str
    result: str
    source: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


@dataclass(frozen=True)
class Precision:
    """What operands are rounded to, and the errors that are allowed for it."""

    dtype: str
    result: float  # of one operation
    model: float  # of a whole model's loss and gradient


FLOAT32 = Precision("float32", result=1e-5, model=1e-4)
# The same, where long sums are taken in another order than in plain JAX.
GPU_FLOAT32 = Precision("float32", result=3e-5, model=2e-4)
# A bfloat16 has 8 bits: each rounding is up to 4e-3, and there are several.
BFLOAT16 = Precision("bfloat16", result=2e-2, model=1e-1)


def relative_error(actual: Array, expected: Array) -> float:
    a, b = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


def normal(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def rounded(x: Floats, precision: Precision) -> Array:
    return jnp.asarray(x).astype(precision.dtype)


def exactly(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function on float32 operands, at the highest precision."""

    def run(*operands: Any) -> Any:
        wide = [
            x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x
            for x in map(jnp.asarray, operands)
        ]
        with jax.default_matmul_precision("highest"):
            return function(*wide)

    return run


def with_gradient(
    function: Operation,
    weight: Array | Floats,
    argnums: tuple[int, ...],
    *operands: object,
) -> list[Array]:
    """The result, and the gradients for a cotangent of `weight`."""

    def run(weight: Array, *operands: object) -> tuple[Array, list[Array]]:
        out, pullback = jax.vjp(function, *operands)
        return out, pullback(weight)

    out, gradients = jax.jit(run)(weight, *operands)
    return [out, *(gradients[i] for i in argnums)]


def compare(
    operation: str,
    source: str,
    names: Sequence[str],
    actual: Sequence[Array],
    expected: Sequence[Array],
    tolerance: float,
) -> Iterator[Check]:
    for name, a, b in zip(names, actual, expected, strict=True):
        yield Check(operation, name, source, relative_error(a, b), tolerance)


def label(operation: str, precision: Precision) -> str:
    return operation if precision is FLOAT32 else f"{operation}, {precision.dtype}"


def check_attention(
    all_ops: Sequence[Ops],
    shape: tuple[int, ...],
    seed: int = 0,
    precision: Precision = FLOAT32,
) -> Iterator[Check]:
    """`shape` is [batch, time, heads, dim]."""
    q, k, v, weight = (rounded(x, precision) for x in normal(seed, 4, *shape))
    names = ("out", "d_q", "d_k", "d_v")

    def results(attention: Operation) -> Callable[..., list[Array]]:
        return lambda *operands: with_gradient(
            attention, operands[0], (0, 1, 2), *operands[1:]
        )

    expected = exactly(results(reference.attention))(weight, q, k, v)
    for ops in all_ops:
        for name, function in (
            ("attention", ops.attention),
            ("attention, vmap", jax.vmap(ops.attention)),
        ):
            actual = results(function)(weight, q, k, v)
            yield from compare(
                label(name, precision),
                ops.name,
                names,
                actual,
                expected,
                precision.result,
            )


def check_decode(
    all_ops: Sequence[Ops],
    shape: tuple[int, ...],
    positions: Sequence[int],
    seed: int = 0,
    precision: Precision = FLOAT32,
) -> Iterator[Check]:
    """`shape` is [batch, time, heads, dim], that of the keys."""
    batch, _, heads, dim = shape
    q = rounded(normal(seed, batch, heads, dim), precision)
    keys, values = (rounded(x, precision) for x in normal(seed + 1, 2, *shape))
    for position in positions:
        operands = q, keys, values, jnp.int32(position)
        expected = exactly(jax.jit(reference.decode))(*operands)
        for ops in all_ops:
            error = relative_error(jax.jit(ops.decode)(*operands), expected)
            yield Check(
                label("decode", precision),
                f"position {position}",
                ops.name,
                error,
                precision.result,
            )


def check_cross_entropy(
    all_ops: Sequence[Ops],
    rows: int,
    dim: int,
    vocabulary: int,
    seed: int = 0,
    precision: Precision = FLOAT32,
) -> Iterator[Check]:
    hidden = rounded(normal(seed, 2, rows, dim), precision)
    head = rounded(normal(seed + 1, dim, vocabulary), precision)
    weight = normal(seed + 2, 2, rows)
    labels = np.random.default_rng(seed).integers(0, vocabulary, (2, rows), np.int32)
    names = ("loss", "d_hidden", "d_head")

    def results(
        function: Operation, batch: int | slice
    ) -> Callable[[Array, Array], list[Array]]:
        # Labels are whole numbers and have no gradient.
        def of_floats(hidden: Array, head: Array) -> Array:
            return function(hidden, head, labels[batch])

        return lambda hidden, head: with_gradient(
            of_floats, weight[batch], (0, 1), hidden[batch], head
        )

    def mapped(function: Operation) -> Operation:
        return jax.vmap(function, (0, None, 0))

    whole = slice(None)
    plain = reference.cross_entropy
    expected = exactly(results(plain, 0))(hidden, head)
    expected_of_all = exactly(results(mapped(plain), whole))(hidden, head)
    for ops in all_ops:
        for name, actual, wanted in (
            ("cross_entropy", results(ops.cross_entropy, 0), expected),
            (
                "cross_entropy, vmap",
                results(mapped(ops.cross_entropy), whole),
                expected_of_all,
            ),
        ):
            yield from compare(
                label(name, precision),
                ops.name,
                names,
                actual(hidden, head),
                wanted,
                precision.result,
            )


def check_int8_matmul(
    all_ops: Sequence[Ops],
    rows: int,
    depth: int,
    columns: int,
    seed: int = 0,
    precision: Precision = FLOAT32,
) -> Iterator[Check]:
    x = rounded(normal(seed, 2, rows, depth), precision)
    w = rounded(normal(seed + 1, depth, columns), precision)
    expected = exactly(jax.jit(jax.vmap(reference.int8_matmul, (0, None))))(x, w)
    unquantised = exactly(jnp.matmul)(x[0], w)
    name, mapped = (
        label(text, precision) for text in ("int8_matmul", "int8_matmul, vmap")
    )
    for ops in all_ops:
        y = jax.jit(ops.int8_matmul)(x[0], w)
        # A number exactly between two whole ones may go to either.
        error = relative_error(y, expected[0])
        yield Check(name, "as quantised", ops.name, error, 2e-3)
        error = relative_error(y, unquantised)
        yield Check(name, "as floats", ops.name, error, 3e-2)
        y = jax.jit(jax.vmap(ops.int8_matmul, (0, None)))(x, w)
        error = relative_error(y, expected)
        yield Check(mapped, "as quantised", ops.name, error, 2e-3)


# Temperature, top_k, top_p.
SETTINGS = (
    (1.0, 0, 1.0),
    (0.7, 20, 1.0),
    (1.3, 0, 0.8),
    (0.9, 12, 0.5),
    (1.0, 1, 1.0),
)


def check_sample(
    all_ops: Sequence[Ops], rows: int, vocabulary: int, seed: int = 0
) -> Iterator[Check]:
    """The error is the share of tokens that differ, where the random number is not
    within rounding of a border between two tokens."""
    logits = 3 * normal(seed, rows, vocabulary)
    uniform = np.random.default_rng(seed).random(rows, np.float32)

    def with_all_settings(function: Callable[..., object]) -> Callable[..., object]:
        return jax.jit(lambda x, u: [function(x, u, *s) for s in SETTINGS])

    def borders(logits: Array, _: Array, *settings: Any) -> Array:
        return reference.candidates(logits, *settings)[1]

    expected = np.array(with_all_settings(reference.sample)(logits, uniform))
    sums = np.array(with_all_settings(borders)(logits, uniform))
    clear = np.abs(sums - uniform[:, None]).min(axis=-1) > 1e-5

    def mapped(sample: Operation) -> Operation:
        def run(logits: Array, uniform: Array, *settings: Any) -> Array:
            def one_row(logits: Array, uniform: Array) -> Array:
                return sample(logits, uniform, *settings)

            tokens: Array = jax.vmap(one_row)(logits, uniform)
            return tokens

        return run

    for ops in all_ops:
        for name, function in (
            ("sample", ops.sample),
            ("sample, vmap", mapped(ops.sample)),
        ):
            actual = np.array(with_all_settings(function)(logits, uniform))
            errors = ((actual != expected) & clear).mean(axis=-1)
            for settings, error in zip(SETTINGS, errors, strict=True):
                yield Check(name, str(settings), ops.name, float(error), 0.0)


def check_model(
    all_ops: Sequence[Ops],
    batch: int,
    time: int,
    seed: int = 0,
    precision: Precision = FLOAT32,
    vocabulary: int = 256,
) -> Iterator[Check]:
    """The loss of a small model and its gradient by every parameter."""
    config = model.Config(width=48, heads=3, layers=1, vocabulary=vocabulary)
    params = model.init(config, seed)
    tokens = np.random.default_rng(seed).integers(
        0, vocabulary, (batch, time + 1), np.int32
    )

    def results(ops: Ops, config: model.Config) -> list[Array]:
        # Its other products too: they are not what is checked.
        with jax.default_matmul_precision("highest"):
            value, gradient = jax.jit(
                jax.value_and_grad(
                    lambda p: model.loss(p, jnp.asarray(tokens), config, ops)
                )
            )(params)
        return [value, *jax.tree.leaves(gradient)]

    paths = jax.tree_util.tree_leaves_with_path(params)
    names = ["loss", *("d" + jax.tree_util.keystr(path) for path, _ in paths)]
    expected = results(PLAIN, config)
    config = dataclasses.replace(config, dtype=precision.dtype)
    for ops in all_ops:
        yield from compare(
            label("model", precision),
            ops.name,
            names,
            results(ops, config),
            expected,
            precision.model,
        )


def cpu_checks(all_ops: Sequence[Ops]) -> list[Check]:
    """Some of each: sizes that fill no block, and one that fills many."""
    return [
        *check_attention(all_ops, (2, 77, 3, 24)),
        *check_attention(all_ops[:1], (1, 256, 2, 32)),
        *check_cross_entropy(all_ops, 150, 40, 101),
        *check_int8_matmul(all_ops, 75, 130, 37),
        *check_sample(all_ops, 500, 256),
        *check_model(all_ops[:1], 2, 70),
    ]


def cuda_checks(all_ops: Sequence[Ops]) -> list[Check]:
    """Some of each, in both precisions: of every source a size that fills no tile,
    of the first one sizes that are split into many parts."""
    first = all_ops[:1]
    results: list[Check] = []
    for precision in (GPU_FLOAT32, BFLOAT16):
        results += [
            *check_attention(all_ops, (1, 300, 3, 24), precision=precision),
            *check_attention(first, (1, 2100, 4, 64), precision=precision),
            *check_decode(all_ops, (2, 300, 3, 40), [0, 211], precision=precision),
            *check_decode(first, (4, 2048, 8, 64), [2047], precision=precision),
            *check_cross_entropy(all_ops, 77, 40, 1001, precision=precision),
            *check_cross_entropy(first, 2500, 64, 32_000, precision=precision),
            *check_int8_matmul(all_ops, 19, 130, 77, precision=precision),
            *check_int8_matmul(first, 8, 512, 32_000, precision=precision),
            *check_model(first, 2, 70, precision=precision),
        ]
    return [*results, *check_sample(all_ops, 64, 300), *check_sample(first, 8, 32_000)]
