"""The operations in plain JAX: what the kernels are checked against, and the
implementation without any custom call that the benchmark compares with."""

import math

import jax
import jax.numpy as jnp

Array = jax.Array


def attention(q: Array, k: Array, v: Array) -> Array:
    """Causal attention with the whole matrix of scores; see ops.Ops for shapes."""
    time, dim = q.shape[-3], q.shape[-1]
    scores = jnp.einsum(
        "...thd,...shd->...hts", q, k, preferred_element_type=jnp.float32
    ) / math.sqrt(dim)
    visible = jnp.tril(jnp.ones((time, time), bool))
    weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
    return jnp.einsum("...hts,...shd->...thd", weights.astype(v.dtype), v)


def decode(q: Array, keys: Array, values: Array, position: Array) -> Array:
    """One query against all keys so far."""
    scores = jnp.einsum(
        "bhd,bshd->bhs", q, keys, preferred_element_type=jnp.float32
    ) / math.sqrt(q.shape[-1])
    visible = jnp.arange(keys.shape[1]) <= position
    weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhs,bshd->bhd", weights.astype(values.dtype), values)


def cross_entropy(hidden: Array, head: Array, labels: Array) -> Array:
    logits = jnp.matmul(hidden, head, preferred_element_type=jnp.float32)
    chosen = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def quantise(x: Array, axis: int) -> tuple[Array, Array]:
    """Whole numbers in [-127, 127] as int8, and the scale along `axis`."""
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
    inverse = jnp.where(largest > 0, 127 / largest, 0)
    return jnp.round(x * inverse).astype(jnp.int8), largest / 127


def int8_matmul(x: Array, w: Array) -> Array:
    x_whole, x_scale = quantise(x, 1)
    w_whole, w_scale = quantise(w, 0)
    product = jnp.matmul(x_whole, w_whole, preferred_element_type=jnp.int32)
    return product * (x_scale * w_scale)


def candidates(
    logits: Array, temperature: float, top_k: int, top_p: float
) -> tuple[Array, Array]:
    """Tokens, most probable first, and the sums of their probabilities up to each,
    for those that top-k and top-p leave; the sum stays 1 after them."""
    vocabulary = logits.shape[-1]
    order = jnp.argsort(-logits, axis=-1, stable=True)
    probability = jax.nn.softmax(
        jnp.take_along_axis(logits, order, axis=-1) / temperature, axis=-1
    )
    if top_k:
        probability = jnp.where(jnp.arange(vocabulary) < top_k, probability, 0)
        probability /= probability.sum(axis=-1, keepdims=True)
    before = jnp.cumsum(probability, axis=-1) - probability
    kept = jnp.where(before < top_p, probability, 0)
    sums = jnp.cumsum(kept, axis=-1)
    return order.astype(jnp.int32), sums / sums[..., -1:]


def sample(
    logits: Array, uniform: Array, temperature: float, top_k: int, top_p: float
) -> Array:
    order, sums = candidates(logits, temperature, top_k, top_p)
    position = jnp.sum(sums <= uniform[..., None], axis=-1, keepdims=True)
    position = jnp.minimum(position, logits.shape[-1] - 1)
    return jnp.take_along_axis(order, position, axis=-1)[..., 0]
