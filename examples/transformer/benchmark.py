"""Trains and samples a byte-level transformer on custom kernels, and compares where
their scratch can come from: jax_bfc, malloc in the handler, or an extra XLA output.

    python examples/transformer/benchmark.py            # under two minutes
    python examples/transformer/benchmark.py --quick    # a quarter of a minute
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from bytelm import build, checks, data, measure, model, report, train
from bytelm.kernels import SOURCES, Kernels
from bytelm.ops import PLAIN, Ops, custom_ops
from rich.console import Console
from rich.markup import escape

import jax_bfc


@dataclass(frozen=True)
class Options:
    config: model.Config
    tokens: int
    sequences: list[int]
    train_seconds: float
    measure_seconds: float
    sample_length: int
    sample_batch: int
    output: Path
    build_folder: Path | None


Defaults = dict[str, int | float | list[int]]
DEFAULT: Defaults = {
    "width": 128,
    "heads": 4,
    "layers": 2,
    "tokens": 2048,
    "sequences": [256, 1024, 2048],
    "train_seconds": 8.0,
    "measure_seconds": 9.0,
    "sample_length": 192,
    "sample_batch": 8,
}
QUICK: Defaults = {
    "width": 64,
    "heads": 2,
    "layers": 1,
    "tokens": 512,
    "sequences": [64, 256],
    "train_seconds": 2.0,
    "measure_seconds": 1.0,
    "sample_length": 64,
    "sample_batch": 4,
}


def positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def parse(arguments: list[str]) -> Options:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="small sizes, a quarter of a minute")
    add("--width", type=positive, help="of the model (128)")
    add("--heads", type=positive, help="of attention (4)")
    add("--layers", type=positive, help="of the model (2)")
    add("--tokens", type=positive, help="tokens in a training step (2048)")
    add("--sequences", type=positive, nargs="+", help="lengths (256 1024 2048)")
    add("--train-seconds", type=float, help="time to train for (8)")
    add("--measure-seconds", type=float, help="time for each length (9)")
    add("--sample-length", type=positive, help="tokens of a sample (192)")
    add("--sample-batch", type=positive, help="samples at once (8)")
    add("--output", type=Path, default=Path("transformer_benchmark.png"), help="plot")
    add("--build-folder", type=Path, help="where built kernels are kept")
    given = parser.parse_args(arguments)
    defaults = QUICK if given.quick else DEFAULT
    for name, value in defaults.items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    if given.width % (2 * given.heads) != 0:
        parser.error(
            f"--width {given.width} must be a multiple of twice --heads {given.heads}"
        )
    if given.sample_length <= 16:
        parser.error("--sample-length must be over 16, the length of the prompt")
    return Options(
        config=model.Config(given.width, given.heads, given.layers),
        tokens=given.tokens,
        sequences=sorted(given.sequences),
        train_seconds=given.train_seconds,
        measure_seconds=given.measure_seconds,
        sample_length=given.sample_length,
        sample_batch=given.sample_batch,
        output=given.output,
        build_folder=given.build_folder,
    )


def run_checks(console: Console, all_ops: list[Ops]) -> bool:
    with console.status("checking every kernel against plain JAX"):
        results = checks.all_checks(all_ops)
    report.print_checks(console, results)
    failed = [check for check in results if not check.passed]
    for check in failed:
        console.print(f"[red]FAILED[/red] {escape(str(check))}")
    return not failed


def train_and_sample(
    console: Console, options: Options, text: data.Bytes, ops: Ops
) -> train.Trained:
    sequence = options.sequences[0]
    trained = train.train(
        text,
        options.config,
        ops,
        seconds=options.train_seconds,
        batch=max(1, options.tokens // sequence),
        sequence=sequence,
        console=console,
    )
    latest = trained.losses[-5:]
    console.print(
        f"{len(trained.losses)} steps, {trained.tokens / trained.seconds:,.0f} "
        f"tokens/s: loss {trained.losses[0]:.3f} -> {sum(latest) / len(latest):.3f} "
        "nats a byte"
    )
    prompt = jnp.asarray([list(b"def __init__(self")], jnp.int32)
    tokens = model.generate(
        trained.params,
        prompt,
        jax.random.key(0),
        config=options.config,
        ops=ops,
        length=max(options.sample_length, 32),
        sampling=model.Sampling(),
    )
    sample = bytes(int(token) for token in tokens[0]).decode("ascii", "replace")
    console.print("A sample:", style="bold")
    console.print(sample, markup=False, highlight=False)
    return trained


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    # Wide enough for the tables where the output is a file.
    console = Console() if sys.stdout.isatty() else Console(width=150)
    try:
        with console.status("building the kernels (kept until their source changes)"):
            library = build.build(options.build_folder)
    except build.BuildError as error:
        print(error, file=sys.stderr)
        return 1
    kernels = Kernels(library)
    console.print(
        f"jax {jax.__version__}, jax_bfc {jax_bfc.__version__}, "
        f"{kernels.max_threads} cores, kernels for {kernels.isa}"
    )
    text = data.corpus()
    custom = [custom_ops(kernels, source) for source in SOURCES]
    if not run_checks(console, custom):
        return 1
    trained = train_and_sample(console, options, text, custom[0])
    rows: list[measure.Measurement] = []
    for sequence in options.sequences:
        with console.status(f"measuring training at sequence length {sequence}"):
            rows += measure.training(
                kernels,
                [*custom, PLAIN],
                text,
                options.config,
                sequence=sequence,
                tokens=options.tokens,
                seconds=options.measure_seconds,
            )
    with console.status("measuring sampling"):
        rows += measure.sampling(
            kernels,
            [*custom, PLAIN],
            trained.params,
            text,
            options.config,
            batch=options.sample_batch,
            length=options.sample_length,
            seconds=options.measure_seconds / 2,
        )
    report.print_measurements(console, rows)
    report.print_statistics(console, rows)
    report.plot(options.output, trained.losses, rows)
    console.print(f"Plot: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
