"""Plots with matplotlib, which the "plot" extra brings."""

import importlib
from typing import Any, BinaryIO, Final

import numpy as np

from jax_bfc._recording import Recording
from jax_bfc._snapshot import Snapshot
from jax_bfc._summary import text_of_bytes
from jax_bfc._views._colours import STATES
from jax_bfc._views._colours import colours as colours_of
from jax_bfc._views._timeline import Timeline

_MOST_IN_LEGEND: Final = 24
_ROWS: Final = 48
_COLUMNS: Final = 384


def matplotlib_module(name: str) -> Any:
    """A module of matplotlib; ImportError that says how to get it."""
    try:
        return importlib.import_module(f"matplotlib.{name}")
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib: pip install 'jax_bfc[plot]'"
        ) from error


def _shown(name: str) -> str:
    """A name of a file, which may hold what no font and no encoding has."""
    return name.encode(errors="replace").decode()


def _cells(snapshot: Snapshot, colours: dict[str, str]) -> Any:
    """RGB of each cell: that of the chunk with most of the cell's bytes."""
    rgb = importlib.import_module("matplotlib.colors").to_rgb
    cells = _ROWS * _COLUMNS
    image = np.ones((cells, 3))
    best = np.zeros(cells)
    scale = cells / max(1, snapshot.totals["mapped_bytes"])
    start = 0.0
    for chunk in snapshot.chunks():
        if chunk.state == "unmapped":
            continue
        end = start + chunk.bytes * scale
        if chunk.state == "in_use":
            colour = rgb(colours[chunk.kernel or "?"])
        else:
            colour = rgb(STATES[chunk.state])
        first, last = int(start), min(cells, int(np.ceil(end)))
        cell = np.arange(first, last)
        covered = np.minimum(cell + 1, end) - np.maximum(cell, start)
        wins = covered > best[first:last]
        image[first:last][wins] = colour
        if chunk.pinned:  # hatched; rows are a multiple of 8
            image[first:last][wins & (cell % 8 < 2)] = (1 + np.array(colour)) / 2
        best[first:last] = np.maximum(best[first:last], covered)
        start = end
    return image.reshape(_ROWS, _COLUMNS, 3)


def plot_snapshot(snapshot: Snapshot) -> Any:
    """The map of a snapshot; see Snapshot.plot."""
    figure = matplotlib_module("figure").Figure(figsize=(11, 6), layout="constrained")
    patches = matplotlib_module("patches")
    totals = snapshot.totals
    rows = snapshot.by_kernel()
    colours = dict(zip(rows, colours_of(len(rows)), strict=True))
    axes = figure.add_subplot()
    axes.imshow(_cells(snapshot, colours), aspect="auto", interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([0, _ROWS - 1], ["0", text_of_bytes(totals["mapped_bytes"])])
    axes.set_ylabel("mapped memory, in address order, row by row")
    axes.set_title(
        f"{snapshot.device}: {text_of_bytes(totals['in_use_bytes'])} in use of "
        f"{text_of_bytes(totals['mapped_bytes'])} mapped, limit "
        f"{text_of_bytes(snapshot.limit_bytes)}",
        parse_math=False,
    )
    handles = [
        patches.Patch(
            color=colours[kernel], label=f"{_shown(kernel)}  {text_of_bytes(held)}"
        )
        for kernel, (_, held, _) in list(rows.items())[:_MOST_IN_LEGEND]
    ]
    if (others := len(rows) - _MOST_IN_LEGEND) > 0:
        handles.append(patches.Patch(alpha=0, label=f"and {others:,} more kernels"))
    handles += [
        patches.Patch(color=colour, label=f"{state}  {text_of_bytes(size)}")
        for state, colour in STATES.items()
        if (size := totals[f"{state}_bytes"]) > 0
    ]
    if totals["pinned_bytes"] > 0:
        label = f"held by CUDA graphs  {text_of_bytes(totals['pinned_bytes'])}"
        handles.append(
            patches.Patch(
                facecolor="#777777", edgecolor="white", hatch="||||", label=label
            )
        )
    if handles:
        labels = [handle.get_label() for handle in handles]
        legend = figure.legend(
            handles, labels, loc="outside right upper", fontsize="small"
        )
        for text in legend.get_texts():
            text.set_parse_math(False)  # a kernel may have any name
    return figure


def plot_recording(recording: Recording, title: str) -> Any:
    """Bytes in use and mapped over time, one plot for each device."""
    timeline = Timeline(recording)
    number = len(timeline.devices)
    figure = matplotlib_module("figure").Figure(
        figsize=(11, 1.5 + min(30, 3.5 * number)), layout="constrained"
    )
    rows = figure.subplots(number, squeeze=False, sharex=True)
    scale = 1e9 if recording._unit == "ns" else 1
    begin = timeline.start_ns / scale
    for axes, device in zip(rows[:, 0], timeline.devices, strict=True):
        points = np.array(timeline.counters[device], dtype=float)
        # At once what was so when the first event came.
        times = np.maximum(points[:, 0] / scale - begin, 0)
        mib = points[:, 1:] / (1 << 20)
        axes.fill_between(times, mib[:, 0], step="post", color=colours_of(1)[0])
        axes.set_ylim(bottom=0)
        axes.set_ylabel("MiB in use")
        what = f"{device}: in use (blue, left scale)"
        if recording._unit == "ns":
            mapped = axes.twinx()  # else what is in use is a line at its foot
            mapped.step(times, mib[:, 1], where="post", color="#888888")
            mapped.set_ylim(bottom=0)
            mapped.set_ylabel("MiB mapped")
            what += ", mapped (grey, right scale), failures (red)"
        axes.set_title(what, loc="left", fontsize="medium")
        failures = [
            mark.time_ns / scale - begin
            for mark in timeline.marks
            if mark.device == device and mark.kind == "failure"
        ]
        for moment in failures[:1000]:
            axes.axvline(moment, color="#ee6677", linewidth=0.8)
    if recording._unit == "ns":
        offset = f"seconds, from {begin:,.3f} s after the recording began"
    else:
        offset = "events"
    rows[-1, 0].set_xlabel(offset)
    figure.suptitle(title, parse_math=False)
    return figure


def save_figure(figure: Any, file: BinaryIO, format: str) -> None:
    """Writes an image."""
    figure.savefig(file, dpi=150, format=format)
