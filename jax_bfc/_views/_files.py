"""``python -m jax_bfc view``: a snapshot or a recording as a file to look at."""

import os
from collections.abc import Callable

from jax_bfc._recording import RecordingError, is_recording, read_recording
from jax_bfc._snapshot import SnapshotError, read_snapshot
from jax_bfc._views._chrome import chrome_trace
from jax_bfc._views._html import recording_page, snapshot_page
from jax_bfc._views._plot import plot_recording, plot_snapshot

SUFFIXES = (".html", ".json", ".png")
# Of a recording: what a second reads, and a browser draws.
_MOST_EVENTS = 1 << 17


class ViewError(ValueError):
    """What cannot be drawn; the text is one line."""


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _views(source: str, output: str) -> dict[str, Callable[[], object]]:
    """By suffix, what writes the output."""
    title = os.path.basename(source)
    if is_recording(source):
        recording = read_recording(source, first=_MOST_EVENTS)
        if len(recording.events) == 0:
            raise RecordingError(f"{source}: has no events; valid: one or more")
        return {
            ".html": lambda: _write(output, recording_page(recording, title)),
            ".json": lambda: _write(output, chrome_trace(recording)),
            ".png": lambda: plot_recording(recording, title, output),
        }
    snapshot = read_snapshot(source)
    return {
        ".html": lambda: _write(output, snapshot_page(snapshot, title)),
        ".json": lambda: snapshot.save(output, format="memory_viz"),
        ".png": lambda: plot_snapshot(snapshot, output),
    }


def view(source: str, output: str) -> None:
    """Writes ``output``, whose suffix says what: a page, JSON for another viewer
    (a recording as a Chrome trace, a snapshot as memory_viz), or an image. Of a
    recording, the first 131,072 events.

    Raises:
        ViewError: the source cannot be read, or the output not be written.
    """
    suffix = os.path.splitext(output)[1].lower()
    if suffix not in SUFFIXES:
        raise ViewError(
            f"-o {output}: what to write is told by the suffix; valid: "
            f"{', '.join(SUFFIXES)}"
        )
    try:
        write = _views(source, output)[suffix]
    except (SnapshotError, RecordingError) as error:
        raise ViewError(str(error)) from error
    except OSError as error:
        raise ViewError(
            f"{source}: cannot be read: {error.strerror or error}"
        ) from error
    try:
        write()
    except ImportError as error:
        raise ViewError(str(error)) from error
    except OSError as error:
        raise ViewError(
            f"{output}: cannot be written: {error.strerror or error}"
        ) from error
