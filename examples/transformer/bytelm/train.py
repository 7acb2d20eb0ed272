"""Training: Adam, and a loop that shows its progress."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from bytelm import model
from bytelm.data import Batches, Tokens
from bytelm.model import Config, Params
from bytelm.ops import Ops

Array = jax.Array


class State(NamedTuple):
    params: Params
    mean: Params  # of the gradients
    square: Params  # of their squares
    step: Array


Step = Callable[[State, Array], tuple[State, Array]]


@jax.jit
def start(params: Params) -> State:
    zeros = jax.tree.map(jnp.zeros_like, params)
    return State(params, zeros, zeros, jnp.zeros((), jnp.int32))


def make_step(config: Config, ops: Ops, rate: float = 3e-3) -> Step:
    """One step of Adam on [batch, time + 1] tokens: state -> state and loss."""

    @partial(jax.jit, donate_argnums=0)
    def step(state: State, batch: Array) -> tuple[State, Array]:
        loss, gradient = jax.value_and_grad(model.loss)(
            state.params, batch, config, ops
        )
        count = state.step + 1
        warm = rate * jnp.minimum(1.0, count / 20)
        scale = warm * jnp.sqrt(1 - 0.99**count) / (1 - 0.9**count)
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state.mean, gradient)
        square = jax.tree.map(
            lambda s, g: 0.99 * s + 0.01 * g * g, state.square, gradient
        )
        params = jax.tree.map(
            lambda p, m, s: p - scale * m / (jnp.sqrt(s) + 1e-8),
            state.params,
            mean,
            square,
        )
        return State(params, mean, square, count), loss

    return step


@dataclass(frozen=True)
class Trained:
    params: Params
    losses: list[float]  # nats a token, one a step
    seconds: float
    tokens: int


def train(
    text: Tokens,
    config: Config,
    ops: Ops,
    *,
    seconds: float,
    batch: int,
    sequence: int,
    console: Console,
    rate: float = 3e-3,
) -> Trained:
    """Trains for about `seconds`, compilation not counted."""
    batches = Batches(text, batch, sequence)
    step = make_step(config, ops, rate)
    state = start(model.init(config))
    losses: list[float] = []
    state, loss = step(state, jnp.asarray(batches.next()))
    losses.append(float(loss))
    columns = (
        TextColumn("training"),
        BarColumn(),
        TextColumn("step {task.fields[step]}  loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    begin = time.perf_counter()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=seconds, step=1, loss=losses[0])
        while (spent := time.perf_counter() - begin) < seconds:
            state, loss = step(state, jnp.asarray(batches.next()))
            losses.append(float(loss))
            progress.update(task, completed=spent, step=len(losses), loss=losses[-1])
        progress.update(task, completed=seconds)
    tokens = (len(losses) - 1) * batch * sequence
    return Trained(state.params, losses, time.perf_counter() - begin, tokens)
