"""The chunk map of a pool."""

import dataclasses
import functools
import importlib
import importlib.resources
import json
import os
import time
from collections.abc import Iterator
from typing import Any, Final

from jax_bfc import _core, _schema
from jax_bfc._blocks import Source, TraceError, open_source
from jax_bfc._devices import index_or_default
from jax_bfc._output import replacing

__all__ = [
    "Chunk",
    "LaneMap",
    "Region",
    "Snapshot",
    "SnapshotError",
    "read_snapshot",
    "snapshot",
]

STATES: Final = ("in_use", "cached", "waiting", "free", "unmapped")
_FORMAT: Final = "jax_bfc snapshot"
_BETWEEN_STREAMS: Final = 2**64 - 2
MAX_FILE_BYTES: Final = 16 << 20  # some 100,000 chunks


class SnapshotError(ValueError):
    """A snapshot file that cannot be read; the text names it and says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a region. Sizes in bytes.

    Attributes:
        address: of its first byte.
        bytes: its size.
        state: "in_use", "cached" (freed, in a front cache), "waiting" (between two
            owners: the device may still use it, or a thread is just getting it),
            "free", or "unmapped" (addresses without memory).
        requested_bytes: what was asked for, of a chunk in use; else 0.
        kernel: who has it, or had it last where it is cached; else None.
        pinned: of a chunk in use: held by a CUDA graph until its executable is gone.
    """

    address: int
    bytes: int
    state: str
    requested_bytes: int
    kernel: str | None
    pinned: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Region:
    """One range of addresses, which its chunks cover in order."""

    address: int
    bytes: int
    chunks: tuple[Chunk, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class LaneMap:
    """What one order of execution uses: the host, or one CUDA stream.

    Attributes:
        lane: its number.
        stream: the id of the CUDA stream; None where it is none's.
        regions: in the order of their addresses.
    """

    lane: int
    stream: int | None
    regions: tuple[Region, ...]


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The chunk map of a device's pool at one moment; see :func:`snapshot`.

    Attributes:
        device: such as "cpu:0".
        time: seconds since 1970, UTC.
        limit_bytes: what the pool may map.
        lanes: those that have been used.
    """

    device: str
    time: float
    limit_bytes: int
    lanes: tuple[LaneMap, ...]

    def chunks(self) -> Iterator[Chunk]:
        """Every chunk of every lane."""
        for lane in self.lanes:
            for region in lane.regions:
                yield from region.chunks

    @functools.cached_property
    def totals(self) -> dict[str, int]:
        """Bytes by state, all that is mapped, what was requested of it, and pinned."""
        totals = dict.fromkeys((f"{state}_bytes" for state in STATES), 0)
        requested = 0
        pinned = 0
        for chunk in self.chunks():
            totals[f"{chunk.state}_bytes"] += chunk.bytes
            requested += chunk.requested_bytes
            pinned += chunk.bytes if chunk.pinned else 0
        mapped = sum(totals.values()) - totals["unmapped_bytes"]
        return totals | {
            "mapped_bytes": mapped,
            "requested_bytes": requested,
            "pinned_bytes": pinned,
        }

    def by_kernel(self) -> dict[str, tuple[int, int, int]]:
        """By kernel: chunks in use, their bytes, and what was asked for of them.

        The kernel with most bytes is first.
        """
        rows: dict[str, tuple[int, int, int]] = {}
        for chunk in self.chunks():
            if chunk.state == "in_use":
                count, held, requested = rows.get(chunk.kernel or "?", (0, 0, 0))
                rows[chunk.kernel or "?"] = (
                    count + 1,
                    held + chunk.bytes,
                    requested + chunk.requested_bytes,
                )
        return dict(sorted(rows.items(), key=lambda row: (-row[1][1], row[0])))

    def to_json(self) -> str:
        """As JSON text, after ``snapshot.schema.json`` in the package's folder."""
        value = {
            "format": _FORMAT,
            "version": 1,
            "device": self.device,
            "time": self.time,
            "limit_bytes": self.limit_bytes,
            "totals": self.totals,
            "lanes": [dataclasses.asdict(lane) for lane in self.lanes],
        }
        return json.dumps(value, separators=(",", ":"))

    def to_memory_viz(self) -> str:
        """As JSON text for PyTorch's viewer, https://pytorch.org/memory_viz.

        For viewers that take JSON (those of 2025 and later; older ones take pickle
        only). A lane is shown as a stream, a contiguous mapped range as a segment.
        A chunk in a front cache counts as inactive. One that is pinned has a second
        frame that says so.
        """
        module = importlib.import_module("jax_bfc._views._memory_viz")
        text: str = module.memory_viz(self)
        return text

    def save(self, path: str | os.PathLike[str], *, format: str = "jax_bfc") -> None:
        """Writes a file.

        Args:
            path: is replaced where it exists; gzip-compressed if it ends in ".gz".
            format: "jax_bfc", what :meth:`to_json` gives and
                ``python -m jax_bfc view`` reads (up to 16 MiB), or "memory_viz", what
                :meth:`to_memory_viz` gives.

        Raises:
            ValueError: another format, or a snapshot larger than what can be read.
            OSError: the file cannot be written; what was there stays.
        """
        formats = {"jax_bfc": self.to_json, "memory_viz": self.to_memory_viz}
        if format not in formats:
            raise ValueError(
                f"format={format!r}; valid: {', '.join(map(repr, formats))}"
            )
        data = formats[format]().encode()
        if format == "jax_bfc" and len(data) > MAX_FILE_BYTES:
            raise ValueError(
                f"the snapshot is {len(data):,} bytes of JSON; valid: up to "
                f"{MAX_FILE_BYTES:,}, which is what view reads. Take what to_json() "
                "gives, or save with format='memory_viz'"
            )
        with replacing(path) as file:
            file.write(data)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """A map of the mapped memory, coloured by kernel, with matplotlib.

        Args:
            path: of an image to write as well, such as "map.png".

        Returns:
            A ``matplotlib.figure.Figure``, which notebooks show.

        Raises:
            ImportError: matplotlib is not installed: ``pip install 'jax_bfc[plot]'``.
        """
        module = importlib.import_module("jax_bfc._views._plot")
        figure = module.plot_snapshot(self)
        if path is not None:
            suffix = os.path.splitext(path)[1]
            with replacing(path if suffix else f"{os.fspath(path)}.png") as file:
                module.save_figure(figure, file, suffix[1:] or "png")
        return figure


def _regions(
    rows: list[tuple[int, int, int, str | None, str, bool, bool]],
) -> list[Region]:
    groups: list[list[Chunk]] = []
    for address, size, requested, kernel, state, starts_region, pinned in rows:
        if starts_region:
            groups.append([])
        groups[-1].append(Chunk(address, size, state, requested, kernel, pinned))
    return [
        Region(chunks[0].address, sum(chunk.bytes for chunk in chunks), tuple(chunks))
        for chunks in groups
    ]


def snapshot(device: Any = None) -> Snapshot:
    """What every byte of a device's pool is at this moment, and who has it.

    Consistent while other threads allocate: all locks of the pool are held while
    it is copied, some 0.2 microseconds a chunk. Nothing is moved or flushed.

    Args:
        device: a ``jax.Device``, or None for the default one.

    Returns:
        A :class:`Snapshot`: ``to_json()``, ``save(path)``, ``plot()``.

    Raises:
        TypeError: ``device`` is no ``jax.Device``.
        ValueError: a device that this version does not serve.
        RuntimeError: CUDA cannot be used.
    """
    index = index_or_default(device)
    limit_bytes, lanes = _core.snapshot(index)
    return Snapshot(
        device=dict(_core.pools())[index],
        time=time.time(),
        limit_bytes=limit_bytes,
        lanes=tuple(
            LaneMap(lane, _stream(stream), tuple(_regions(rows)))
            for lane, stream, rows in lanes
        ),
    )


# ---------------------------------------------------------------------------
# Reading.


def schema() -> dict[str, Any]:
    """The schema of :meth:`Snapshot.to_json`."""
    file = importlib.resources.files("jax_bfc") / "snapshot.schema.json"
    value: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return value


def read_snapshot(path: str | os.PathLike[str]) -> Snapshot:
    """Reads what :meth:`Snapshot.save` wrote.

    Raises:
        SnapshotError: the file cannot be read or is no snapshot.
    """
    name = os.fspath(path)
    try:
        with open_source(name) as source:
            return snapshot_from(source)
    except OSError as error:
        raise SnapshotError(
            f"{name}: cannot be read: {error.strerror or error}"
        ) from error
    except TraceError as error:
        raise SnapshotError(str(error)) from error


def snapshot_from(source: Source) -> Snapshot:
    """As :func:`read_snapshot`.

    Raises:
        SnapshotError: it is no snapshot.
        TraceError: it cannot be unpacked.
        OSError: it cannot be read.
    """
    data = source.start(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise SnapshotError(
            f"{source.name}: is larger than {MAX_FILE_BYTES:,} bytes; valid: a smaller "
            "one"
        )
    try:
        # Before all is parsed: other files are soon told.
        if not is_snapshot(data):
            raise _schema.SchemaError("the format is not named at its start")
        value = json.loads(data, parse_float=_number)
        _schema.check(value, schema())
        return _from_json(value)
    except (ValueError, RecursionError) as error:
        reason = str(error) or "nested too deep"
        raise SnapshotError(
            f"{source.name}: is no snapshot of jax_bfc: {reason}"
        ) from error


def is_snapshot(start: bytes) -> bool:
    """Whether a file that starts like this says that it is one."""
    return _FORMAT.encode() in start[:200]


def _number(text: str) -> float:
    """An integer however it is written, such as 1.0."""
    value = float(text)
    return int(value) if value.is_integer() else value


def _stream(stream: int | None) -> int | None:
    """None for a lane between two streams too, which older files give a number."""
    return None if stream == _BETWEEN_STREAMS else stream


def _from_json(value: dict[str, Any]) -> Snapshot:
    lanes = []
    for lane in value["lanes"]:
        regions = []
        for region in lane["regions"]:
            end = region["address"]
            for chunk in region["chunks"]:
                if chunk["address"] != end:
                    raise _schema.SchemaError(
                        f"a chunk starts at {chunk['address']}; valid: {end}, where "
                        "the last one ends"
                    )
                end += chunk["bytes"]
            if end != region["address"] + region["bytes"]:
                raise _schema.SchemaError(
                    f"the chunks of the region at {region['address']} end at {end}; "
                    f"valid: {region['address'] + region['bytes']}"
                )
            chunks = tuple(Chunk(**chunk) for chunk in region["chunks"])
            regions.append(Region(region["address"], region["bytes"], chunks))
        lanes.append(LaneMap(lane["lane"], _stream(lane["stream"]), tuple(regions)))
    return Snapshot(value["device"], value["time"], value["limit_bytes"], tuple(lanes))
