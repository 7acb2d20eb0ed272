"""``python -m jax_bfc view``: a snapshot, recording or trace as a file to look at."""

import os
from collections.abc import Callable
from typing import BinaryIO

from jax_bfc._blocks import Source, TraceError, open_source
from jax_bfc._output import replacing
from jax_bfc._recording import HEADER, RecordingError, is_recording, recording_from
from jax_bfc._snapshot import SnapshotError, is_snapshot, snapshot_from
from jax_bfc._trace import is_trace, trace_from
from jax_bfc._trace_format import HEADERS
from jax_bfc._views._chrome import chrome_trace
from jax_bfc._views._html import recording_page, snapshot_page
from jax_bfc._views._plot import plot_recording, plot_snapshot, save_figure
from jax_bfc._views._timeline import recording_of_trace

SUFFIXES = (".html", ".json", ".png")
# Of a recording: what a second reads, and a browser draws.
_MOST_EVENTS = 1 << 17


class ViewError(ValueError):
    """What cannot be drawn; the text is one line."""


def _writers(
    source: Source, title: str, *, from_middle: bool
) -> dict[str, Callable[[BinaryIO], object]]:
    """By suffix, what writes the output."""
    start = source.start(4096)
    if is_snapshot(start):
        snapshot = snapshot_from(source)
        return {
            ".html": lambda file: file.write(snapshot_page(snapshot, title).encode()),
            ".json": lambda file: file.write(snapshot.to_memory_viz().encode()),
            ".png": lambda file: save_figure(plot_snapshot(snapshot), file, "png"),
        }
    if is_recording(start):
        recording = recording_from(source, first=_MOST_EVENTS)
        if len(recording.events) == 0:
            raise RecordingError(f"{source.name}: has no events; valid: one or more")
    elif is_trace(start):
        trace = trace_from(source, from_middle=from_middle)
        recording = recording_of_trace(trace, first=_MOST_EVENTS)
    else:
        what = "is" if start else "is empty, so it is"
        raise ViewError(
            f"{source.name}: {what} no snapshot, recording or trace; valid: JSON of "
            f"Snapshot.save(), or CSV with the header {HEADER} or {HEADERS}"
        )
    written = None if source.name == "-" else os.stat(source.name).st_mtime

    def page(file: BinaryIO) -> None:
        file.write(recording_page(recording, title, written=written).encode())

    return {
        ".html": page,
        ".json": lambda file: file.write(chrome_trace(recording).encode()),
        ".png": lambda file: save_figure(plot_recording(recording, title), file, "png"),
    }


def view(source: str, output: str, *, from_middle: bool = False) -> None:
    """Writes ``output``, whose suffix says what: a page, JSON for another viewer
    (a recording or trace as a Chrome trace, a snapshot as memory_viz), or an image.
    Of recordings and traces, the first 131,072 events.

    Args:
        source: "-" is standard input.
        from_middle: see :func:`jax_bfc._trace.read_trace`.

    Raises:
        ViewError: the source cannot be read, or the output not be written, which
            then is what it was.
    """
    suffix = os.path.splitext(output)[1].lower()
    if suffix not in SUFFIXES:
        raise ViewError(
            f"-o {output}: what to write is told by the suffix; valid: "
            f"{', '.join(SUFFIXES)}"
        )
    if source != "-" and _are_one(source, output):
        raise ViewError(
            f"-o {output}: is the file that is drawn, and would replace it; valid: "
            "another file"
        )
    name = "standard input" if source == "-" else os.path.basename(source)
    title = name.encode(errors="replace").decode()  # it may be no text
    try:
        with open_source(source) as opened:
            write = _writers(opened, title, from_middle=from_middle)[suffix]
    except (SnapshotError, RecordingError, TraceError) as error:
        raise ViewError(str(error)) from error
    except OSError as error:
        raise ViewError(
            f"{source}: cannot be read: {error.strerror or error}"
        ) from error
    try:
        with replacing(output) as file:
            write(file)
    except ImportError as error:
        raise ViewError(str(error)) from error
    except OSError as error:
        raise ViewError(
            f"{output}: cannot be written: {error.strerror or error}"
        ) from error


def _are_one(source: str, output: str) -> bool:
    """Whether both name one file, by whatever spelling or link."""
    try:
        return os.path.samefile(source, output)
    except OSError:  # one of them is not there
        return False
