"""A decoder-only transformer over tokens, on any implementation of the operations."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bytelm.ops import Ops

Array = jax.Array
Params = dict[str, Any]


@dataclass(frozen=True)
class Config:
    width: int = 128
    heads: int = 4
    layers: int = 2
    vocabulary: int = 256
    dtype: str = "float32"  # of activations; parameters are float32

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class Sampling:
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95


def init(config: Config, seed: int = 0) -> Params:
    width, vocabulary = config.width, config.vocabulary
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, scale: float = 1.0) -> Array:
        normal = random.standard_normal((rows, columns), np.float32)
        return jnp.asarray(normal * np.float32(scale / math.sqrt(rows)))

    # Layers that add to the residual start small, so that deep models train.
    residual = 1 / math.sqrt(2 * config.layers)
    return {
        "embedding": matrix(vocabulary, width, math.sqrt(vocabulary) * 0.02),
        "head": matrix(width, vocabulary),
        "norm": jnp.ones(width),
        "layers": [
            {
                "attention_norm": jnp.ones(width),
                "qkv": matrix(width, 3 * width),
                "out": matrix(width, width, residual),
                "mlp_norm": jnp.ones(width),
                "up": matrix(width, 4 * width),
                "down": matrix(4 * width, width, residual),
            }
            for _ in range(config.layers)
        ],
    }


def cast(params: Params, config: Config) -> Params:
    """The parameters as the model computes with them."""
    computed: Params = jax.tree.map(lambda p: p.astype(config.dtype), params)
    return computed


def norm(x: Array, scale: Array) -> Array:
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide * wide, axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(mean + 1e-6) * scale).astype(x.dtype)


def rotate(x: Array, positions: Array) -> Array:
    """Rotary position embedding of [..., time, heads, dim]."""
    half = x.shape[-1] // 2
    angle = positions[:, None, None] * 10000.0 ** (-jnp.arange(half) / half)
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    a, b = x[..., :half], x[..., half:]
    rotated = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
    return rotated.astype(x.dtype)


def project(
    x: Array, layer: Params, config: Config, positions: Array
) -> tuple[Array, Array, Array]:
    """q, k, v [..., time, heads, dim] of one layer."""
    qkv = norm(x, layer["attention_norm"]) @ layer["qkv"]
    q, k, v = jnp.split(
        qkv.reshape(*x.shape[:-1], 3 * config.heads, config.head_dim), 3, axis=-2
    )
    return rotate(q, positions), rotate(k, positions), v


def finish(x: Array, mixed: Array, layer: Params) -> Array:
    """The rest of a layer after attention."""
    x = x + mixed.reshape(x.shape) @ layer["out"]
    hidden = jax.nn.gelu(norm(x, layer["mlp_norm"]) @ layer["up"])
    x = x + hidden @ layer["down"]
    return x


def hidden_states(params: Params, tokens: Array, config: Config, ops: Ops) -> Array:
    """[batch, time] tokens -> [batch, time, width]."""
    x = params["embedding"][tokens]
    positions = jnp.arange(tokens.shape[1])
    for layer in params["layers"]:
        q, k, v = project(x, layer, config, positions)
        x = finish(x, ops.attention(q, k, v), layer)
    return norm(x, params["norm"])


def loss(params: Params, batch: Array, config: Config, ops: Ops) -> Array:
    """Mean cross-entropy, in nats a token, of [batch, time + 1] tokens."""
    params = cast(params, config)
    hidden = hidden_states(params, batch[:, :-1], config, ops)
    labels = batch[:, 1:].reshape(-1)
    flat = hidden.reshape(-1, config.width)
    return ops.cross_entropy(flat, params["head"], labels).mean()


# Tokens [batch, length], the position of the newest, and for each layer the keys and
# the values [batch, length, heads, dim] of those before.
Decoding = tuple[Array, Array, list[Array], list[Array]]


def start_decoding(prompt: Array, config: Config, length: int) -> Decoding:
    """Before the first token of [batch, n] prompts was read."""
    batch, given = prompt.shape
    tokens = jnp.zeros((batch, length), jnp.int32).at[:, :given].set(prompt)
    # A cache of its own for each layer: a piece of a larger one would be copied
    # for every call of a kernel.
    shape = (batch, length, config.heads, config.head_dim)

    def cache() -> list[Array]:
        return [jnp.zeros(shape, config.dtype) for _ in range(config.layers)]

    return tokens, jnp.zeros((), jnp.int32), cache(), cache()


def decode(
    params: Params,
    state: Decoding,
    uniform: Array,
    *,
    config: Config,
    ops: Ops,
    given: int,
    sampling: Sampling,
) -> Decoding:
    """Reads the newest token, and adds the next one: of the prompt's first `given`,
    or sampled by the random numbers `uniform`, [length, batch].

    `params` as cast() gives them.
    """
    tokens, position, keys, values = state[0], state[1], list(state[2]), list(state[3])
    x = params["embedding"][tokens[:, position]][:, None]
    for i, layer in enumerate(params["layers"]):
        q, k, v = project(x, layer, config, position[None])
        keys[i] = keys[i].at[:, position].set(k[:, 0])
        values[i] = values[i].at[:, position].set(v[:, 0])
        mixed = ops.decode(q[:, 0], keys[i], values[i], position)
        x = finish(x, mixed, layer)
    logits = ops.int8_matmul(norm(x[:, 0], params["norm"]), params["head"])
    chosen = ops.sample(
        logits,
        uniform[position],
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
    )
    following = jnp.where(position + 1 < given, tokens[:, position + 1], chosen)
    return tokens.at[:, position + 1].set(following), position + 1, keys, values


@partial(jax.jit, static_argnames=("config", "ops", "length", "sampling"))
def generate(
    params: Params,
    prompt: Array,
    key: Array,
    *,
    config: Config,
    ops: Ops,
    length: int,
    sampling: Sampling,
) -> Array:
    """Continues [batch, n] prompts to [batch, length], a token at a time."""
    params = cast(params, config)
    uniform = jax.random.uniform(key, (length, len(prompt)))

    def step(_: Array, state: Decoding) -> Decoding:
        return decode(
            params,
            state,
            uniform,
            config=config,
            ops=ops,
            given=prompt.shape[1],
            sampling=sampling,
        )

    start = start_decoding(prompt, config, length)
    end: Decoding = jax.lax.fori_loop(0, length - 1, step, start)
    return end[0]
