"""A recording, allocation by allocation."""

import dataclasses
from typing import Any

import numpy as np

from jax_bfc._recording import EVENT, KINDS, NO_KERNEL, Recording
from jax_bfc._trace import Trace


@dataclasses.dataclass(frozen=True, slots=True)
class Allocation:
    """From its allocation to its free, or the recording's end."""

    device: str
    lane: int
    kernel: str
    begin_ns: int
    end_ns: int
    address: int
    requested_bytes: int
    chunk_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Mark:
    """What is neither an allocation nor a free; bytes mapped, held or asked for."""

    device: str
    kind: str
    kernel: str
    time_ns: int
    bytes: int


class Timeline:
    """What the views draw.

    Attributes:
        devices: that have events.
        start_ns: of the first event but what was held and mapped already, because
            compiling comes before it.
        end_ns: of the last event.
        peaks: by kernel, the most bytes of chunks that it had at once.
        allocations: in the order of their beginnings. What was freed without an
            allocation that is known is left out.
        marks: in order of time.
        counters: by device, (time_ns, bytes in use, bytes mapped) after each event
            that changes them. Where the beginning of the recording was dropped,
            what was in use and mapped then is not known and not in them.
    """

    def __init__(self, recording: Recording) -> None:
        rows = recording.events.tolist()
        names = [f"{k}:{label}" if label else k for k, label in recording.kernels]
        before = {KINDS.index("grow"), KINDS.index("held")}
        self.start_ns: int = next(
            (row[0] for row in rows if row[6] not in before), rows[0][0] if rows else 0
        )
        if recording._unit != "ns":
            self.start_ns = 0
        self.end_ns: int = rows[-1][0] if rows else 0
        self.allocations: list[Allocation] = []
        self.marks: list[Mark] = []
        self.counters: dict[str, list[tuple[int, int, int]]] = {}
        self.peaks: dict[str, int] = {}
        held: dict[str, int] = {}
        live: dict[int, Any] = {}
        ended = []
        for row in rows:
            time_ns, _, name, requested, size, kernel, kind_index, pool = row[:8]
            kind = KINDS[kind_index]
            device = recording._device(pool)
            track = self.counters.setdefault(device, [(0, 0, 0)])
            _, in_use, mapped = track[-1]
            if kind in ("allocate", "held"):
                live[name] = row
                in_use += size
                title = "?" if kernel == NO_KERNEL else names[kernel]
                held[title] = held.get(title, 0) + size
                self.peaks[title] = max(self.peaks.get(title, 0), held[title])
            elif kind == "free":
                if (begin := live.pop(name, None)) is None:
                    continue
                ended.append((begin, time_ns))
                title = "?" if begin[5] == NO_KERNEL else names[begin[5]]
                held[title] -= begin[4]
                in_use -= size
            else:
                title = "" if kernel == NO_KERNEL else names[kernel]
                self.marks.append(Mark(device, kind, title, time_ns, size or requested))
                mapped += {"grow": size, "trim": -size}.get(kind, 0)
            track.append((time_ns, in_use, max(mapped, in_use)))
        ended += [(row, self.end_ns) for row in live.values()]
        ended.sort(key=lambda pair: pair[0][0])
        for row, end_ns in ended:
            self.allocations.append(
                Allocation(
                    device=recording._device(row[7]),
                    lane=row[8],
                    kernel="?" if row[5] == NO_KERNEL else names[row[5]],
                    begin_ns=row[0],
                    end_ns=end_ns,
                    address=row[1],
                    requested_bytes=row[3],
                    chunk_bytes=row[4],
                )
            )
        self.devices = sorted(self.counters)


def recording_of_trace(trace: Trace, *, first: int) -> Recording:
    """What a trace says as a recording: its times are numbers of events, and it knows
    no kernels, addresses or chunks."""
    count = min(first, len(trace))
    events = np.zeros(count, EVENT)
    events["time_ns"] = np.arange(1, count + 1)
    events["id"] = trace.ids[:count]
    events["requested_bytes"] = events["chunk_bytes"] = trace.bytes[:count]
    kinds = (KINDS.index("free"), KINDS.index("allocate"))
    events["kind"] = np.array(kinds, np.uint8)[trace.is_allocate[:count]]
    events["pool"] = trace.device[:count]
    recording = Recording(path=trace.path, time=0)
    recording._finish(
        len(trace), len(trace) - count, b"", [("(trace)", "")], in_file=False
    )
    recording._events = events
    recording.is_cut = count < len(trace)
    recording._devices = trace.devices or ("trace",)
    recording._unit = "events"
    return recording
