"""Checks every kernel's results and gradients against plain JAX."""

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


def relative_error(actual: Array, expected: Array) -> float:
    a, b = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


def normal(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def with_gradient(
    function: Operation, weight: Floats, argnums: tuple[int, ...], *operands: object
) -> list[Array]:
    """The result, and the gradients for a cotangent of `weight`."""

    def run(*operands: object) -> tuple[Array, list[Array]]:
        out, pullback = jax.vjp(function, *operands)
        return out, pullback(weight)

    out, gradients = jax.jit(run)(*operands)
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


def check_attention(
    all_ops: Sequence[Ops], shape: tuple[int, ...], seed: int = 0
) -> Iterator[Check]:
    """`shape` is [batch, time, heads, dim]."""
    q, k, v, weight = normal(seed, 4, *shape)
    names = ("out", "d_q", "d_k", "d_v")

    def results(attention: Operation) -> list[Array]:
        return with_gradient(attention, weight, (0, 1, 2), q, k, v)

    expected = results(reference.attention)
    for ops in all_ops:
        for name, function in (
            ("attention", ops.attention),
            ("attention, vmap", jax.vmap(ops.attention)),
        ):
            yield from compare(name, ops.name, names, results(function), expected, 1e-5)


def check_cross_entropy(
    all_ops: Sequence[Ops], rows: int, dim: int, vocabulary: int, seed: int = 0
) -> Iterator[Check]:
    hidden, head = normal(seed, 2, rows, dim), normal(seed + 1, dim, vocabulary)
    weight = normal(seed + 2, 2, rows)
    labels = np.random.default_rng(seed).integers(0, vocabulary, (2, rows), np.int32)
    names = ("loss", "d_hidden", "d_head")

    def results(function: Operation, batch: int | slice) -> list[Array]:
        # Labels are whole numbers and have no gradient.
        def of_floats(hidden: Array, head: Array) -> Array:
            return function(hidden, head, labels[batch])

        return with_gradient(of_floats, weight[batch], (0, 1), hidden[batch], head)

    def mapped(function: Operation) -> Operation:
        return jax.vmap(function, (0, None, 0))

    whole = slice(None)
    expected = results(reference.cross_entropy, 0)
    expected_of_all = results(mapped(reference.cross_entropy), whole)
    for ops in all_ops:
        actual = results(ops.cross_entropy, 0)
        name = "cross_entropy"
        yield from compare(name, ops.name, names, actual, expected, 1e-5)
        actual = results(mapped(ops.cross_entropy), whole)
        name = "cross_entropy, vmap"
        yield from compare(name, ops.name, names, actual, expected_of_all, 1e-5)


def check_int8_matmul(
    all_ops: Sequence[Ops], rows: int, depth: int, columns: int, seed: int = 0
) -> Iterator[Check]:
    x, w = normal(seed, 2, rows, depth), normal(seed + 1, depth, columns)
    expected = jax.jit(jax.vmap(reference.int8_matmul, (0, None)))(x, w)
    for ops in all_ops:
        y = jax.jit(ops.int8_matmul)(x[0], w)
        # A number exactly between two whole ones may go to either.
        error = relative_error(y, expected[0])
        yield Check("int8_matmul", "as quantised", ops.name, error, 2e-3)
        error = relative_error(y, x[0] @ w)
        yield Check("int8_matmul", "as floats", ops.name, error, 3e-2)
        y = jax.jit(jax.vmap(ops.int8_matmul, (0, None)))(x, w)
        error = relative_error(y, expected)
        yield Check("int8_matmul, vmap", "as quantised", ops.name, error, 2e-3)


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
    all_ops: Sequence[Ops], batch: int, time: int, seed: int = 0
) -> Iterator[Check]:
    """The loss of a small model and its gradient by every parameter."""
    config = model.Config(width=48, heads=3, layers=1)
    params = model.init(config, seed)
    tokens = np.random.default_rng(seed).integers(0, 256, (batch, time + 1), np.int32)

    def results(ops: Ops) -> list[Array]:
        value, gradient = jax.jit(
            jax.value_and_grad(
                lambda p: model.loss(p, jnp.asarray(tokens), config, ops)
            )
        )(params)
        return [value, *jax.tree.leaves(gradient)]

    paths = jax.tree_util.tree_leaves_with_path(params)
    names = ["loss", *("d" + jax.tree_util.keystr(path) for path, _ in paths)]
    expected = results(PLAIN)
    for ops in all_ops:
        yield from compare("model", ops.name, names, results(ops), expected, 1e-4)


def all_checks(all_ops: Sequence[Ops]) -> list[Check]:
    """Some of each: sizes that fill no block, and one that fills many."""
    return [
        *check_attention(all_ops, (2, 77, 3, 24)),
        *check_attention(all_ops[:1], (1, 256, 2, 32)),
        *check_cross_entropy(all_ops, 150, 40, 101),
        *check_int8_matmul(all_ops, 75, 130, 37),
        *check_sample(all_ops, 500, 256),
        *check_model(all_ops[:1], 2, 70),
    ]
