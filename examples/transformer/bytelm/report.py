"""Prints and plots what was measured."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from rich.console import Console
from rich.table import Table

import jax_bfc
from bytelm.checks import Check
from bytelm.kernels import KernelLibrary
from bytelm.measure import FEWEST_TURNS, Measurement


def rows_of(kernels: KernelLibrary) -> dict[str, str]:
    """What is compared, by name, as the tables call it."""
    return {**kernels.sources, "jax": "plain JAX"}


def mebibytes(nbytes: int | None) -> str:
    return "-" if nbytes is None else f"{nbytes / 2**20:.2f}"


def print_checks(console: Console, checks: Sequence[Check]) -> None:
    """A row for each operation: the worst result of all sources."""
    table = Table(title="Kernels against plain JAX: worst error of all sources")
    for name in ("operation", "results", "worst error", "at", "allowed"):
        table.add_column(
            name, justify="left" if name in ("operation", "at") else "right"
        )
    for operation in dict.fromkeys(check.operation for check in checks):
        group = [check for check in checks if check.operation == operation]
        # An error that is not a number is the worst.
        worst = max(group, key=lambda c: np.inf if c.error != c.error else c.error)
        table.add_row(
            operation,
            str(len(group)),
            f"{worst.error:.1e}",
            f"{worst.result} ({worst.source})",
            f"{worst.tolerance:.0e}",
        )
    console.print(table)


def print_measurements(
    console: Console, kernels: KernelLibrary, rows: Sequence[Measurement]
) -> None:
    names = rows_of(kernels)
    baseline = kernels.baseline
    faults = kernels.platform == "cpu"  # a GPU's memory has no page faults
    table = Table(
        title=f"The same model with {len(kernels.sources)} sources of scratch, and "
        "in plain JAX",
        caption=f"ratio: time / time with {names[baseline]} in the same turn, median "
        "and, from five turns on, its 95 % interval; under 1 is faster. p99 is close "
        "to the slowest where there are fewer than 100 steps. Scratch and XLA temp in "
        "MiB; XLA temp is what the compiled program allocates at each run, an extra "
        "output included." + (" faults: page faults a step." if faults else ""),
    )
    for name in ("workload", "scratch"):
        table.add_column(name, no_wrap=True)
    for name in (
        "tok/s",
        "median ms",
        "p99 ms",
        "steps",
        "scratch",
        "XLA temp",
        *(["faults"] if faults else []),
        f"ratio to {baseline}",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        ratio, low, high = row.ratio_interval()
        compared = "1" if row.source == baseline else f"{ratio:.2f}"
        if row.source != baseline and len(row.ratios) >= FEWEST_TURNS:
            compared += f" [{low:.2f}, {high:.2f}]"
        table.add_row(
            f"{row.workload} {row.batch}x{row.sequence}",
            names[row.source],
            f"{row.tokens_per_second:,.0f}",
            f"{row.median * 1e3:.1f}",
            f"{row.p99 * 1e3:.1f}",
            str(len(row.times)),
            mebibytes(row.scratch_peak_bytes),
            mebibytes(row.xla_temp_bytes),
            *([f"{np.median(row.faults):,.0f}"] if faults else []),
            compared,
            end_section=row.source == list(names)[-1],
        )
    console.print(table)


def print_statistics(console: Console, rows: Sequence[Measurement]) -> None:
    """jax_bfc.memory_stats() and jax_bfc.kernel_stats(), whatever they hold."""
    table = Table(title="jax_bfc.memory_stats()", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for key, value in jax_bfc.memory_stats().items():
        table.add_row(key, f"{value:,}")
    console.print(table)
    snapshots = [row.kernel_stats for row in rows]
    kernels = [name for name in snapshots[-1] if name.startswith("transformer.")]
    fields = [field.name for field in dataclasses.fields(jax_bfc.KernelStats)]
    table = Table(
        title="jax_bfc.kernel_stats(), the largest after any workload, sizes in MiB"
    )
    table.add_column("kernel", no_wrap=True)
    for name in fields:
        table.add_column(name.replace("_", " "), justify="right")
    for kernel in kernels:
        cells = []
        for name in fields:
            seen = (getattr(s[kernel], name) for s in snapshots if kernel in s)
            largest = max(value for value in seen if isinstance(value, int))
            is_size = "bytes" in name or "size" in name
            cells.append(mebibytes(largest) if is_size else f"{largest:,}")
        table.add_row(kernel, *cells)
    console.print(table)


def plot(
    path: Path,
    kernels: KernelLibrary,
    losses: Sequence[float],
    rows: Sequence[Measurement],
    unit: str,
) -> None:
    """Saves a PNG: the loss in bits a `unit`, the time of a step, and its ratio to
    that with the baseline."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(15, 4.5))
    left.plot(np.array(losses) / np.log(2))
    left.set(title="Training", xlabel="step", ylabel=f"loss, bits a {unit}")
    trained = [row for row in rows if row.workload == "train"]
    for source, label in rows_of(kernels).items():
        mine = [row for row in trained if row.source == source]
        if not mine:
            continue
        lengths = [row.sequence for row in mine]
        middle.plot(lengths, [row.median * 1e3 for row in mine], "o-", label=label)
        if source in (kernels.baseline, "jax"):
            continue
        intervals = np.array([row.ratio_interval() for row in mine]).T
        error = np.abs(intervals[1:] - intervals[0])
        right.errorbar(
            lengths, intervals[0], yerr=error, fmt="o-", capsize=4, label=label
        )
    middle.set(title="Training step", xlabel="sequence length", ylabel="median, ms")
    middle.set_xscale("log", base=2)
    middle.set_yscale("log")
    middle.legend()
    right.axhline(1, color="gray", linewidth=1, label=kernels.sources[kernels.baseline])
    right.set_xscale("log", base=2)
    right.set(
        title=f"Time of a step / with {kernels.baseline} (95 % interval)",
        xlabel="sequence length",
    )
    right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
