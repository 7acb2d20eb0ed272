"""One HTML page that needs nothing else: timeline, map, and table by kernel."""

import datetime
import importlib.resources
import json
from typing import Any

from jax_bfc._recording import Recording
from jax_bfc._snapshot import Snapshot
from jax_bfc._summary import text_of_bytes
from jax_bfc._version import __version__
from jax_bfc._views._colours import colours
from jax_bfc._views._timeline import Allocation, Timeline

# What a browser draws at once without trouble; of the allocations the largest
# are kept, by size times length, and the page says how many are not.
_MOST_ALLOCATIONS = 50_000
_MOST_POINTS = 20_000
_MOST_CHUNKS = 100_000


def _page(title: str, data: dict[str, Any]) -> str:
    template = importlib.resources.files("jax_bfc._views") / "page.html"
    # In a script element only "<" could end it; JSON may have it escaped.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    safe = title.replace("&", "&amp;").replace("<", "&lt;")
    head, _, rest = template.read_text(encoding="utf-8").partition("@DATA@")
    return head.replace("@TITLE@", safe) + text + rest


def _thinned(
    points: list[tuple[int, int, int]], most: int
) -> list[tuple[int, int, int]]:
    """At most so many: of each group of points the one with most in use."""
    step = -(-len(points) // most)
    if step <= 1:
        return points
    groups = (points[i : i + step] for i in range(0, len(points), step))
    return [max(group, key=lambda point: point[1]) for group in groups]


def _date(time: float) -> str:
    return datetime.datetime.fromtimestamp(time, datetime.UTC).strftime("%F %T UTC")


def _about(*more: str) -> str:
    """A line on where the page comes from."""
    now = datetime.datetime.now(datetime.UTC).timestamp()
    return "  ·  ".join([*more, f"drawn {_date(now)} by jax_bfc {__version__}"])


def recording_page(
    recording: Recording, title: str, *, written: float | None = None
) -> str:
    """The page of a recording.

    Args:
        written: when its file was, in seconds since 1970.
    """
    timeline = Timeline(recording)
    shown = timeline.allocations
    if len(shown) > _MOST_ALLOCATIONS:

        def weight(a: Allocation) -> int:
            return a.chunk_bytes * (a.end_ns - a.begin_ns + 1)

        kept = set(map(id, sorted(shown, key=weight)[-_MOST_ALLOCATIONS:]))
        shown = [a for a in shown if id(a) in kept]
    notes = []
    if recording.is_cut:
        notes.append(f"The first {recording.num_events:,} events of the file.")
    if len(shown) < len(timeline.allocations):
        notes.append(
            f"{len(shown):,} of {len(timeline.allocations):,} allocations are drawn: "
            "those of most bytes times time. The table has all."
        )
    kernels: dict[str, list[int]] = {}
    for a in timeline.allocations:
        row = kernels.setdefault(a.kernel, [0, 0, 0, timeline.peaks[a.kernel], 0])
        row[0] += 1
        row[1] += a.requested_bytes
        row[2] = max(row[2], a.requested_bytes)
        row[4] += a.chunk_bytes - a.requested_bytes
    names = sorted(kernels, key=lambda name: -kernels[name][1])
    index = {name: i for i, name in enumerate(names)}
    devices = {device: i for i, device in enumerate(timeline.devices)}
    about = [] if written is None else [f"file written {_date(written)}"]
    if recording._unit == "ns":
        offset = f"{timeline.start_ns / 1e9:,.6f}".rstrip("0").rstrip(".")
        about.append(f"0 is {offset} s after the recording began")
    return _page(
        title,
        {
            "type": "recording",
            "title": title,
            "about": _about(*about),
            "colours": colours(len(names)),
            "start_ns": timeline.start_ns,
            "notes": notes,
            "unit": recording._unit,
            "end_ns": timeline.end_ns,
            "devices": timeline.devices,
            "kernels": names,
            "columns": ["allocations", "allocated", "largest", "peak", "wasted"],
            "rows": [kernels[name] for name in names],
            "counters": [
                _thinned(timeline.counters[d], _MOST_POINTS) for d in timeline.devices
            ],
            "chunks": [
                [
                    devices[a.device],
                    index[a.kernel],
                    a.begin_ns,
                    a.end_ns,
                    a.address,
                    a.chunk_bytes,
                    a.requested_bytes,
                    "in_use",
                ]
                for a in shown
                if recording._unit == "ns"  # a trace has no addresses
            ],
            "marks": [
                [devices[m.device], m.kind, m.kernel, m.time_ns, m.bytes]
                for m in timeline.marks[:_MOST_POINTS]
            ],
        },
    )


def snapshot_page(snapshot: Snapshot, title: str) -> str:
    """The page of a snapshot."""
    chunks = [chunk for chunk in snapshot.chunks() if chunk.state != "unmapped"]
    notes = [
        f"{snapshot.device}: {totals} bytes {name}"
        for name in ("in use", "pinned", "cached", "waiting", "free")
        if (totals := f"{snapshot.totals[name.replace(' ', '_') + '_bytes']:,}") != "0"
    ]
    if len(chunks) > _MOST_CHUNKS:
        notes.append(
            f"{_MOST_CHUNKS:,} of {len(chunks):,} chunks are drawn, the largest."
        )
        kept = set(map(id, sorted(chunks, key=lambda c: c.bytes)[-_MOST_CHUNKS:]))
        chunks = [chunk for chunk in chunks if id(chunk) in kept]
    rows = snapshot.by_kernel()
    names = list(rows)
    index = {name: i for i, name in enumerate(names)}
    return _page(
        title,
        {
            "type": "snapshot",
            "title": title,
            "about": _about(
                f"taken {_date(snapshot.time)}",
                f"limit {text_of_bytes(snapshot.limit_bytes)}",
            ),
            "colours": colours(len(names)),
            "unit": "ns",
            "start_ns": 0,
            "notes": notes,
            "end_ns": 1,
            "devices": [snapshot.device],
            "kernels": names,
            "columns": ["chunks", "in use", "requested"],
            "rows": list(rows.values()),
            "counters": [],
            "chunks": [
                [
                    0,
                    index.get(chunk.kernel or "?", -1)
                    if chunk.state == "in_use"
                    else -1,
                    0,
                    1,
                    chunk.address,
                    chunk.bytes,
                    chunk.requested_bytes,
                    chunk.state,
                    chunk.pinned,
                ]
                for chunk in chunks
            ],
            "marks": [],
        },
    )
