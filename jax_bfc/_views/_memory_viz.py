"""Snapshots in the form that PyTorch's memory viewer reads.

The viewer adds up the sizes of a segment's blocks from its address, so blocks
cover their segment without gaps; a segment's device is an index into
``device_traces``.
"""

import itertools
import json
from typing import Any, Final

from jax_bfc._snapshot import Chunk, LaneMap, Snapshot

# As the viewer calls them; what is cached or waiting is nobody's to use yet, but
# only of the latter the device may still use it.
_STATES: Final = {
    "in_use": "active_allocated",
    "waiting": "active_pending_free",
    "cached": "inactive",
    "free": "inactive",
}


def _frames(chunk: Chunk) -> list[dict[str, Any]]:
    if chunk.kernel is None:
        return []
    names = [chunk.kernel] + ["held by a CUDA graph"] * chunk.pinned
    return [{"filename": "jax_bfc", "line": 0, "name": name} for name in names]


def _segment(device: int, lane: LaneMap, chunks: list[Chunk]) -> dict[str, Any]:
    def total(*states: str) -> int:
        return sum(chunk.bytes for chunk in chunks if chunk.state in states)

    return {
        "device": device,
        "address": chunks[0].address,
        "total_size": sum(chunk.bytes for chunk in chunks),
        "allocated_size": total("in_use"),
        "active_size": total("in_use", "waiting"),
        "requested_size": sum(chunk.requested_bytes for chunk in chunks),
        "stream": lane.lane,
        "segment_type": "large",
        "segment_pool_id": [0, 0],
        "is_expandable": True,
        "frames": [],
        "blocks": [
            {
                "address": chunk.address,
                "size": chunk.bytes,
                "requested_size": chunk.requested_bytes,
                "state": _STATES[chunk.state],
                "frames": _frames(chunk),
            }
            for chunk in chunks
        ],
    }


def memory_viz(snapshot: Snapshot) -> str:
    """JSON text for https://pytorch.org/memory_viz."""
    device = int(snapshot.device.rpartition(":")[2])
    segments = []
    for lane in snapshot.lanes:
        for region in lane.regions:
            runs = itertools.groupby(region.chunks, lambda c: c.state == "unmapped")
            for unmapped, chunks in runs:
                if not unmapped:
                    segments.append(_segment(device, lane, list(chunks)))
    return json.dumps(
        {"segments": segments, "device_traces": [[] for _ in range(device + 1)]},
        separators=(",", ":"),
    )
