"""``python -m jax_bfc replay`` and ``plan``: what they print."""

import json
import os
import time
from collections.abc import Sequence
from typing import Any

from jax_bfc import _core
from jax_bfc._progress import progress
from jax_bfc._summary import align, text_of_bytes
from jax_bfc._trace import Trace, TraceError, read_trace


def _base(path: str) -> str:
    """Of a file's path, as a terminal may show it."""
    name = "standard input" if path == "-" else os.path.basename(path)
    return "".join(c if c.isprintable() else "?" for c in name)


def _read(path: str, device: str | None, *, from_middle: bool) -> list[Trace]:
    """The trace, by device; all of it if it does not tell them apart."""
    with progress(f"reading {_base(path)}"):
        trace = read_trace(path, from_middle=from_middle)
    if device is not None and device not in trace.devices:
        valid = ", ".join(trace.devices)
        raise TraceError(
            f"{path}: has no events of device {device!r}; valid: "
            + (valid or "no --device, because the file does not name any")
        )
    if len(trace.devices) < 2:
        return [trace]
    return [trace.of_device(name) for name in trace.devices if device in (None, name)]


def _device(trace: Trace) -> dict[str, str]:
    """What a row says of the device, if the file does."""
    return {"device": trace.devices[0]} if trace.devices else {}


def _skipped(traces: Sequence[Trace]) -> str:
    """A note on the frees that were passed over."""
    counts = {trace.path: trace.skipped for trace in traces if trace.skipped}
    return "".join(
        f"\n\n{_base(path)}: {count:,} frees of what no line allocates were passed over"
        for path, count in counts.items()
    )


def _replay_one(trace: Trace, policy: str) -> dict[str, Any]:
    try:
        with progress(f"replaying {_base(trace.path)}: {policy}"):
            result = _core.replay(trace.is_allocate, trace.ids, trace.bytes, policy)
    except ValueError as error:
        raise TraceError(f"{trace.path}: {error}") from error
    row = {"trace": trace.path, **_device(trace), "policy": policy, **result}
    return row | ({"skipped_frees": trace.skipped} if trace.skipped else {})


def replay(
    paths: Sequence[str],
    policies: Sequence[str],
    *,
    device: str | None,
    from_middle: bool,
    as_json: bool,
) -> str:
    """A row for each trace, device and policy."""
    # All are read before the first is replayed: a bad one is known at once.
    traces = [
        trace
        for path in paths
        for trace in _read(path, device, from_middle=from_middle)
    ]
    rows = [
        _replay_one(trace, policy)
        for trace in traces
        for policy in dict.fromkeys(policies)
    ]
    if as_json:
        return json.dumps(rows, indent=2)
    header: tuple[str, ...] = (
        "trace",
        "device",
        "policy",
        "events",
        "peak live",
        "high water",
        "ratio",
        "mapped",
        "internal",
        "external",
        "ns/event",
    )
    table: list[tuple[str, ...]] = [
        (
            _base(row["trace"]),
            row.get("device", ""),
            row["policy"],
            f"{row['events']:,}",
            text_of_bytes(row["peak_live_bytes"]),
            text_of_bytes(row["high_water_bytes"]),
            f"{row['ratio']:.4f}",
            text_of_bytes(row["mapped_bytes"]),
            text_of_bytes(row["internal_fragmentation_bytes"]),
            f"{row['external_fragmentation']:.3f}",
            f"{row['ns_per_event']:.1f}",
        )
        for row in rows
    ]
    lines: list[tuple[str, ...]] = [header, *table]
    if len(traces) == len(paths):  # no trace of several devices
        lines = [line[:1] + line[2:] for line in lines]
    text = align(lines, text_columns=len(lines[0]) - 8)
    return text + _skipped(traces)


def _configure(trace: Trace, limit_bytes: int) -> str:
    if not trace.devices:
        return f"jax_bfc.configure(limit_bytes={limit_bytes})"
    platform, _, number = trace.devices[0].partition(":")
    if platform == "cpu":  # one budget is shared by all
        return f"jax_bfc.configure(limit_bytes={limit_bytes})"
    return (
        f"jax_bfc.configure(limit_bytes={limit_bytes}, "
        f"device=jax.local_devices(backend={platform!r})[{number}])"
    )


def _plan_one(trace: Trace) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        with progress(f"planning {_base(trace.path)}"):
            result = _core.plan(trace.is_allocate, trace.ids, trace.bytes)
    except ValueError as error:
        raise TraceError(f"{trace.path}: {error}") from error
    del result["offsets"]
    peak = result["peak_live_bytes"]
    row = {
        "trace": trace.path,
        **_device(trace),
        "events": len(trace),
        **result,
        "planned_ratio": result["planned_bytes"] / peak if peak else 0.0,
        "ratio": result["high_water_bytes"] / peak if peak else 0.0,
        "seconds": time.perf_counter() - start,
        "configure": _configure(trace, result["limit_bytes"]),
    }
    return row | ({"skipped_frees": trace.skipped} if trace.skipped else {})


def _plan_text(row: dict[str, Any]) -> str:
    peak = row["peak_live_bytes"]
    sizes = (
        ("peak live, which no pool is below", peak),
        ("placed offline, lifetimes known", row["planned_bytes"]),
        ("placed by the arena: high water", row["high_water_bytes"]),
        ("limit that the arena serves it in", row["limit_bytes"]),
    )
    rows = [("", "bytes", "", "of peak live")]
    rows += [
        (name, f"{n:,}", text_of_bytes(n), f"{n / peak if peak else 0:.4f}")
        for name, n in sizes
    ]
    where = f" on {row['device']}" if "device" in row else ""
    return (
        f"{_base(row['trace'])}{where}: {row['events']:,} events, "
        f"{row['allocations']:,} allocations, planned in {row['seconds']:.1f} s\n\n"
        f"{align(rows)}\n\n{row['configure']}"
    )


def plan(path: str, *, device: str | None, from_middle: bool, as_json: bool) -> str:
    """The smallest pool for the trace, of each device by itself."""
    traces = _read(path, device, from_middle=from_middle)
    rows = [_plan_one(trace) for trace in traces]
    if as_json:
        return json.dumps(rows if len(rows) > 1 else rows[0], indent=2)
    return "\n\n\n".join(map(_plan_text, rows)) + _skipped(traces)
