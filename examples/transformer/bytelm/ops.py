"""The operations of the model, as functions that jit, grad and vmap know."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from bytelm import reference
from bytelm.kernels import KernelLibrary

Array = jax.Array
Residuals = tuple[Array, ...]


@dataclass(frozen=True)
class Ops:
    """One implementation of every operation.

    The kernels of the CPU take float32, those of a GPU bfloat16 too.

    attention(q, k, v): causal; all [..., time, heads, dim], also the result.
    decode(q, keys, values, position): [batch, heads, dim], twice [batch, time,
      heads, dim], int32: one query against all keys up to its position.
    cross_entropy(hidden, head, labels): [rows, dim], [dim, vocabulary], [rows]
      int32 -> the loss of each row, [rows].
    int8_matmul(x, w): [rows, depth] @ [depth, columns], rows of x and columns of w
      quantised to 8 bits on the fly. Not differentiable.
    sample(logits, uniform, temperature, top_k, top_p): [..., vocabulary], random
      numbers [...] in [0, 1) -> tokens [...] int32. top_k=0: no limit.
    """

    name: str
    attention: Callable[[Array, Array, Array], Array]
    decode: Callable[[Array, Array, Array, Array], Array]
    cross_entropy: Callable[[Array, Array, Array], Array]
    int8_matmul: Callable[[Array, Array], Array]
    sample: Callable[[Array, Array, float, int, float], Array]


PLAIN = Ops(
    "jax",
    reference.attention,
    reference.decode,
    reference.cross_entropy,
    reference.int8_matmul,
    reference.sample,
)


def like(array: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def attention_op(
    kernels: KernelLibrary, source: str
) -> Callable[[Array, Array, Array], Array]:
    def sizes(q: Array) -> tuple[int, int, int, int]:
        *batch, time, heads, dim = q.shape
        return (math.prod(batch), time, heads, dim)

    def run_forward(q: Array, k: Array, v: Array) -> list[Array]:
        *batch, time, heads, _ = q.shape
        log_sum = jax.ShapeDtypeStruct((*batch, heads, time), jnp.float32)
        results = [like(q), log_sum]
        operands = (q, k, v)
        return kernels.call(
            "attention_forward", source, operands, results, sizes(q), "broadcast_all"
        )

    @jax.custom_vjp
    def attention(q: Array, k: Array, v: Array) -> Array:
        return run_forward(q, k, v)[0]

    def forward(q: Array, k: Array, v: Array) -> tuple[Array, Residuals]:
        out, log_sum = run_forward(q, k, v)
        return out, (q, k, v, out, log_sum)

    def backward(saved: Residuals, d_out: Array) -> tuple[Array, Array, Array]:
        q, k, v, _, _ = saved
        results = [like(q), like(k), like(v)]
        d_q, d_k, d_v = kernels.call(
            "attention_backward",
            source,
            (*saved, d_out),
            results,
            sizes(q),
            "broadcast_all",
        )
        return d_q, d_k, d_v

    attention.defvjp(forward, backward)
    return attention


def cross_entropy_op(
    kernels: KernelLibrary, source: str
) -> Callable[[Array, Array, Array], Array]:
    def run_forward(hidden: Array, head: Array, labels: Array) -> list[Array]:
        per_row = jax.ShapeDtypeStruct(labels.shape, jnp.float32)
        return kernels.call(
            "cross_entropy_forward",
            source,
            (hidden, head, labels),
            [per_row, per_row],
            (*hidden.shape, head.shape[1]),
            "sequential",
        )

    @jax.custom_vjp
    def cross_entropy(hidden: Array, head: Array, labels: Array) -> Array:
        return run_forward(hidden, head, labels)[0]

    def forward(hidden: Array, head: Array, labels: Array) -> tuple[Array, Residuals]:
        loss, log_sum = run_forward(hidden, head, labels)
        return loss, (hidden, head, labels, log_sum)

    def backward(saved: Residuals, d_loss: Array) -> tuple[Array, Array, None]:
        hidden, head, _, _ = saved
        d_hidden, d_head = kernels.call(
            "cross_entropy_backward",
            source,
            (*saved, d_loss),
            [like(hidden), like(head)],
            (*hidden.shape, head.shape[1]),
            "sequential",
        )
        return d_hidden, d_head, None

    cross_entropy.defvjp(forward, backward)
    return cross_entropy


def custom_ops(kernels: KernelLibrary, source: str) -> Ops:
    """Every operation as a custom kernel with scratch from `source`."""

    def decode(q: Array, keys: Array, values: Array, position: Array) -> Array:
        operands = (q, keys, values, position)
        return kernels.call(
            "decode", source, operands, [like(q)], keys.shape, "sequential"
        )[0]

    def int8_matmul(x: Array, w: Array) -> Array:
        result = jax.ShapeDtypeStruct((x.shape[0], w.shape[1]), jnp.float32)
        sizes = (*x.shape, w.shape[1])
        return kernels.call(
            "int8_matmul", source, (x, w), [result], sizes, "sequential"
        )[0]

    def sample(
        logits: Array, uniform: Array, temperature: float, top_k: int, top_p: float
    ) -> Array:
        *batch, vocabulary = logits.shape
        return kernels.call(
            "sample",
            source,
            (logits, uniform),
            [jax.ShapeDtypeStruct(tuple(batch), jnp.int32)],
            (math.prod(batch), vocabulary),
            "broadcast_all",
            temperature=np.float32(temperature),
            top_k=np.int64(top_k),
            top_p=np.float32(top_p),
        )[0]

    return Ops(
        source,
        attention_op(kernels, source),
        # On a CPU a row of scores needs no kernel.
        decode if "decode" in kernels.operations else reference.decode,
        cross_entropy_op(kernels, source),
        int8_matmul,
        sample,
    )
