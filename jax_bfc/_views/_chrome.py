"""A recording as a Chrome trace, which https://ui.perfetto.dev shows.

Each device is a process: a counter track of its bytes, a row of slices for each
kernel, one for each allocation, and marks for what is neither allocated nor freed.
"""

import json
from typing import Any

from jax_bfc._recording import Recording
from jax_bfc._views._timeline import Timeline


def chrome_trace(recording: Recording) -> str:
    """JSON text in the Trace Event Format. Times in microseconds."""
    timeline = Timeline(recording)
    events: list[dict[str, Any]] = []
    for pid, device in enumerate(timeline.devices, start=1):
        events.append(
            {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": device}}
        )
        for time_ns, in_use, mapped in timeline.counters[device]:
            events.append(
                {
                    "ph": "C",
                    "pid": pid,
                    "name": "scratch bytes",
                    "ts": time_ns / 1e3,
                    "args": {"in use": in_use, "mapped, not in use": mapped - in_use},
                }
            )
    pids = {device: pid for pid, device in enumerate(timeline.devices, start=1)}
    for number, a in enumerate(timeline.allocations):
        common = {
            "cat": "scratch",
            "name": a.kernel,
            "id": number,
            "pid": pids[a.device],
            "tid": a.lane,
        }
        args = {
            "requested_bytes": a.requested_bytes,
            "chunk_bytes": a.chunk_bytes,
            "address": hex(a.address),
            "lane": a.lane,
        }
        begin, end = a.begin_ns / 1e3, a.end_ns / 1e3
        events.append(common | {"ph": "b", "ts": begin, "args": args})
        events.append(common | {"ph": "e", "ts": end})
    for mark in timeline.marks:
        events.append(
            {
                "ph": "i",
                "s": "p",
                "cat": "scratch",
                "name": f"{mark.kind} {mark.kernel}".strip(),
                "pid": pids[mark.device],
                "tid": 0,
                "ts": mark.time_ns / 1e3,
                "args": {"bytes": mark.bytes},
            }
        )
    # Metadata first, then in order of time; the sort keeps an end before what
    # begins at the same moment.
    events.sort(key=lambda event: event.get("ts", -1))
    return json.dumps(
        {"traceEvents": events, "displayTimeUnit": "ns"}, separators=(",", ":")
    )
