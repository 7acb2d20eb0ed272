"""Trains and samples a transformer on custom kernels, and compares where their
scratch can come from. On a CPU: jax_bfc, malloc in the handler, or an extra XLA
output. On a CUDA GPU: jax_bfc, XLA's ScratchAllocator, an extra XLA output,
cudaMallocAsync or cudaMalloc in the handler.

    python examples/transformer/benchmark.py            # under two minutes
    python examples/transformer/benchmark.py --quick    # a quarter of a minute
"""

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from bytelm import build, checks, data, measure, model, report, train
from bytelm.cuda_kernels import CudaKernels
from bytelm.kernels import KernelLibrary, Kernels
from bytelm.ops import PLAIN, Ops, custom_ops
from rich.console import Console
from rich.markup import escape

import jax_bfc


@dataclass(frozen=True)
class Options:
    platform: str  # "cpu" or "cuda"
    config: model.Config
    tokens: int
    sequences: list[int]
    rate: float
    train_seconds: float
    measure_seconds: float
    sample_length: int
    sample_batch: int
    output: Path
    build_folder: Path | None
    checks_only: bool


Defaults = dict[str, int | float | list[int]]
# By platform and --quick.
DEFAULTS: dict[tuple[str, bool], Defaults] = {
    ("cpu", False): {
        "width": 128,
        "heads": 4,
        "layers": 2,
        "tokens": 2048,
        "sequences": [256, 1024, 2048],
        "train_seconds": 8.0,
        "measure_seconds": 9.0,
        "sample_length": 192,
        "sample_batch": 8,
    },
    ("cpu", True): {
        "width": 64,
        "heads": 2,
        "layers": 1,
        "tokens": 512,
        "sequences": [64, 256],
        "train_seconds": 2.0,
        "measure_seconds": 1.0,
        "sample_length": 64,
        "sample_batch": 4,
    },
    ("cuda", False): {
        "width": 1024,
        "heads": 16,
        "layers": 3,
        "tokens": 8192,
        "sequences": [1024, 4096],
        "train_seconds": 12.0,
        "measure_seconds": 6.0,
        "sample_length": 256,
        "sample_batch": 8,
    },
    ("cuda", True): {
        "width": 512,
        "heads": 8,
        "layers": 1,
        "tokens": 4096,
        "sequences": [512],
        "train_seconds": 2.0,
        "measure_seconds": 1.0,
        "sample_length": 64,
        "sample_batch": 4,
    },
}
# Of the optimiser: wider models want smaller ones.
RATES = {"cpu": 3e-3, "cuda": 5e-4}


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
    add(
        "--checks-only",
        action="store_true",
        help="with scratch from jax_bfc alone: check the kernels, train and sample",
    )
    platforms = ("cpu", "cuda")
    add("--platform", choices=platforms, help="where to run (JAX's default backend)")
    both = [DEFAULTS[platform, False] for platform in platforms]

    def add_size(name: str, kind: type | Callable[[str], int], text: str) -> None:
        values = [" ".join(re.findall(r"[\d.]+", str(d[name]))) for d in both]
        help_text = f"{text} ({values[0]}; on a GPU {values[1]})"
        count = "+" if name == "sequences" else None
        add(f"--{name.replace('_', '-')}", type=kind, nargs=count, help=help_text)

    add_size("width", positive, "of the model")
    add_size("heads", positive, "of attention")
    add_size("layers", positive, "of the model")
    add_size("tokens", positive, "tokens in a training step")
    add_size("sequences", positive, "lengths")
    add_size("train_seconds", float, "time to train for")
    add_size("measure_seconds", float, "time for each length")
    add_size("sample_length", positive, "tokens of a sample")
    add_size("sample_batch", positive, "samples at once")
    add("--output", type=Path, default=Path("transformer_benchmark.png"), help="plot")
    add("--build-folder", type=Path, help="where built kernels are kept")
    given = parser.parse_args(arguments)
    if given.platform is None:
        given.platform = "cuda" if jax.default_backend() == "gpu" else "cpu"
    elif given.platform == "cpu":
        jax.config.update("jax_platforms", "cpu")
    elif jax.default_backend() != "gpu":
        parser.error(
            "--platform cuda needs a GPU that JAX can use; jax.default_backend() is "
            f"{jax.default_backend()!r}"
        )
    for name, value in DEFAULTS[given.platform, given.quick].items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    if given.width % (2 * given.heads) != 0:
        parser.error(
            f"--width {given.width} must be a multiple of twice --heads {given.heads}"
        )
    if given.platform == "cuda" and given.width > 128 * given.heads:
        parser.error(f"--width {given.width} is over 128 for each of --heads")
    if given.sample_length <= 16:
        parser.error("--sample-length must be over 16, the length of the prompt")
    sizes = given.width, given.heads, given.layers
    return Options(
        platform=given.platform,
        config=(
            model.Config(*sizes, vocabulary=32_000, dtype="bfloat16")
            if given.platform == "cuda"
            else model.Config(*sizes)
        ),
        rate=RATES[given.platform],
        tokens=given.tokens,
        sequences=sorted(given.sequences),
        train_seconds=given.train_seconds,
        measure_seconds=given.measure_seconds,
        sample_length=given.sample_length,
        sample_batch=given.sample_batch,
        output=given.output,
        build_folder=given.build_folder,
        checks_only=given.checks_only,
    )


def load_kernels(options: Options) -> KernelLibrary:
    """Raises build.BuildError."""
    if options.platform == "cuda":
        return CudaKernels(build.build(options.build_folder, build.CUDA))
    return Kernels(build.build(options.build_folder))


def load_text(options: Options) -> tuple[data.Table, data.Tokens]:
    """What a token stands for, and the text to train on."""
    if options.platform == "cuda":
        text = data.corpus(8 << 20, packages=True).tobytes()
        words = data.WordTable(text, options.config.vocabulary)
        return words, words.encode(text)
    return data.ByteTable(), data.corpus()


def run_checks(console: Console, options: Options, all_ops: list[Ops]) -> bool:
    run = checks.cuda_checks if options.platform == "cuda" else checks.cpu_checks
    with console.status("checking every kernel against plain JAX"):
        results = run(all_ops)
    report.print_checks(console, results)
    failed = [check for check in results if not check.passed]
    for check in failed:
        console.print(f"[red]FAILED[/red] {escape(str(check))}")
    return not failed


def train_and_sample(
    console: Console, options: Options, table: data.Table, text: data.Tokens, ops: Ops
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
        rate=options.rate,
    )
    latest = trained.losses[-5:]
    console.print(
        f"{len(trained.losses)} steps, {trained.tokens / trained.seconds:,.0f} "
        f"tokens/s: loss {trained.losses[0]:.3f} -> {sum(latest) / len(latest):.3f} "
        f"nats a {table.name}"
    )
    prompt = jnp.asarray(table.encode(b"def __init__(self")[None], jnp.int32)
    tokens = model.generate(
        trained.params,
        prompt,
        jax.random.key(0),
        config=options.config,
        ops=ops,
        length=max(options.sample_length, 32),
        sampling=model.Sampling(),
    )
    sample = table.decode(tokens[0].tolist()).decode("ascii", "replace")
    console.print("A sample:", style="bold")
    console.print(sample, markup=False, highlight=False)
    return trained


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    # Wide enough for the tables where the output is a file.
    console = Console() if sys.stdout.isatty() else Console(width=150)
    try:
        with console.status("building the kernels (kept until their source changes)"):
            kernels = load_kernels(options)
    except build.BuildError as error:
        print(error, file=sys.stderr)
        return 1
    console.print(
        f"jax {jax.__version__}, jax_bfc {jax_bfc.__version__}, {kernels.description}"
    )
    table, text = load_text(options)
    sources = list(kernels.sources)[: 1 if options.checks_only else None]
    custom = [custom_ops(kernels, source) for source in sources]
    if not run_checks(console, options, custom):
        return 1
    trained = train_and_sample(console, options, table, text, custom[0])
    if options.checks_only:
        return 0
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
    report.print_measurements(console, kernels, rows)
    report.print_statistics(console, rows)
    report.plot(options.output, kernels, trained.losses, rows, table.name)
    console.print(f"Plot: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
