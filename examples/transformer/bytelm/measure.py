"""Runs the same program with several sources of scratch, side by side.

The sources take turns, a step each, so that what disturbs the machine disturbs
all of them; a ratio is formed within a turn and never between turns.
"""

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Compiled

import jax_bfc
from bytelm import model, train
from bytelm.data import Batches, Tokens
from bytelm.kernels import KernelLibrary
from bytelm.model import Config, Params, Sampling
from bytelm.ops import Ops

# Plain JAX takes several times as long, so it sits out most turns.
PLAIN_EVERY = 4
FEWEST_TURNS = 5


@dataclass
class Measurement:
    """One workload with one source of scratch; times in seconds."""

    workload: str
    sequence: int
    batch: int
    source: str
    tokens: int  # of one step
    times: list[float] = field(default_factory=list)
    faults: list[int] = field(default_factory=list)
    ratios: list[float] = field(
        default_factory=list
    )  # to the baseline, of the same turn
    scratch_peak_bytes: int | None = None  # None: has no scratch of its own
    xla_temp_bytes: int = 0
    kernel_stats: dict[str, jax_bfc.KernelStats] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return float(np.median(self.times))

    @property
    def p99(self) -> float:
        return float(np.percentile(self.times, 99))

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.median

    def ratio_interval(self) -> tuple[float, float, float]:
        """Median ratio to the baseline, and the 95 % interval of that median."""
        ratios = np.array(self.ratios)
        picks = np.random.default_rng(0).integers(0, len(ratios), (2000, len(ratios)))
        low, high = np.percentile(np.median(ratios[picks], axis=1), [2.5, 97.5])
        return float(np.median(ratios)), float(low), float(high)


def temp_bytes(compiled: Compiled) -> int:
    """What a program allocates at each run beside its results."""
    analysis = compiled.memory_analysis()
    return 0 if analysis is None else int(analysis.temp_size_in_bytes)


Run = Callable[[], None]  # one step, until its results are there


def take_turns(
    runs: Sequence[tuple[Measurement, Run]], baseline: str, seconds: float, most: int
) -> None:
    """Lets each source do a step in turn until `seconds` have passed."""
    for _, run in runs:
        run()
    begin = time.perf_counter()
    for turn in range(most):
        if turn >= FEWEST_TURNS and time.perf_counter() - begin > seconds:
            break
        took: dict[str, float] = {}
        for i in range(len(runs)):
            # Another one goes first in each turn.
            measurement, run = runs[(i + turn) % len(runs)]
            if measurement.source == "jax" and turn % PLAIN_EVERY:
                continue
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            start = time.perf_counter()
            run()
            took[measurement.source] = time.perf_counter() - start
            after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            measurement.times.append(took[measurement.source])
            measurement.faults.append(after - before)
        for measurement, _ in runs:
            if measurement.source in took:
                ratio = took[measurement.source] / took[baseline]
                measurement.ratios.append(ratio)


def with_peaks(
    kernels: KernelLibrary,
    prepare: Callable[[], list[tuple[Measurement, Run]]],
    seconds: float,
    most: int,
) -> list[Measurement]:
    """Measures what `prepare` compiles, and the scratch that it takes meanwhile."""
    kernels.reset_peaks()
    runs = prepare()
    take_turns(runs, kernels.baseline, seconds, most)
    peaks = kernels.peaks()
    for measurement, _ in runs:
        measurement.scratch_peak_bytes = peaks.get(measurement.source)
        measurement.kernel_stats = jax_bfc.kernel_stats()
    return [measurement for measurement, _ in runs]


def training(
    kernels: KernelLibrary,
    all_ops: Sequence[Ops],
    text: Tokens,
    config: Config,
    *,
    sequence: int,
    tokens: int,
    seconds: float,
) -> list[Measurement]:
    """Training steps on `tokens` tokens, as sequences of length `sequence`."""
    batch = max(1, tokens // sequence)
    examples = jnp.asarray(Batches(text, batch, sequence).next())

    def prepare_one(ops: Ops) -> tuple[Measurement, Run]:
        measurement = Measurement("train", sequence, batch, ops.name, batch * sequence)
        state = train.start(model.init(config))
        step = train.make_step(config, ops)
        compiled = jax.jit(step, donate_argnums=0).lower(state, examples).compile()
        measurement.xla_temp_bytes = temp_bytes(compiled)

        def run() -> None:
            nonlocal state
            state, loss = compiled(state, examples)
            jax.block_until_ready((state, loss))

        return measurement, run

    def prepare() -> list[tuple[Measurement, Run]]:
        return [prepare_one(ops) for ops in all_ops]

    return with_peaks(kernels, prepare, seconds, 200)


def sampling(
    kernels: KernelLibrary,
    all_ops: Sequence[Ops],
    params: Params,
    text: Tokens,
    config: Config,
    *,
    batch: int,
    length: int,
    seconds: float,
) -> list[Measurement]:
    """Sampling `length` tokens for each of `batch` prompts: one run is a step."""
    prompt = jnp.asarray(Batches(text, batch, 16).next()[:, :16])

    def prepare_one(ops: Ops) -> tuple[Measurement, Run]:
        measurement = Measurement("sample", length, batch, ops.name, batch * length)
        compiled = model.generate.lower(
            params,
            prompt,
            jax.random.key(1),
            config=config,
            ops=ops,
            length=length,
            sampling=Sampling(),
        ).compile()
        measurement.xla_temp_bytes = temp_bytes(compiled)

        def run() -> None:
            jax.block_until_ready(compiled(params, prompt, jax.random.key(1)))

        return measurement, run

    def prepare() -> list[tuple[Measurement, Run]]:
        return [prepare_one(ops) for ops in all_ops]

    return with_peaks(kernels, prepare, seconds, 100)
