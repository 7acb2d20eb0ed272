"""jax_bfc.snapshot(): the chunk map of a pool."""

import dataclasses
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from pools import LIMIT, MIB, fresh_pools, unchanged

import jax_bfc
from jax_bfc import _schema, _snapshot


@pytest.fixture(autouse=True)
def pools() -> Iterator[None]:
    with fresh_pools():
        yield


def check(snapshot: jax_bfc.Snapshot) -> dict[str, Any]:
    """What must hold of every snapshot; its JSON."""
    value: dict[str, Any] = json.loads(snapshot.to_json())
    _schema.check(value, _snapshot.schema())
    for lane in snapshot.lanes:
        for region in lane.regions:
            end = region.address
            for chunk in region.chunks:
                assert chunk.address == end
                end += chunk.bytes
                assert chunk.requested_bytes <= chunk.bytes
                assert chunk.state == "in_use" or chunk.requested_bytes == 0
                assert chunk.state == "in_use" or not chunk.pinned
            assert end == region.address + region.bytes
    return value


def test_an_unused_pool_is_empty() -> None:
    snapshot = jax_bfc.snapshot()
    assert check(snapshot)["lanes"] == []
    assert snapshot.totals["mapped_bytes"] == 0
    assert snapshot.device == "cpu:0"
    assert snapshot.limit_bytes == LIMIT
    assert abs(snapshot.time - time.time()) < 60


def test_the_totals_are_those_of_the_statistics() -> None:
    with jax_bfc.scratch(1000), jax_bfc.scratch(3 * MIB), unchanged():
        with unchanged():
            snapshot = jax_bfc.snapshot(jax.devices()[0])
        stats = jax_bfc.memory_stats()
    totals = check(snapshot)["totals"]
    assert totals["in_use_bytes"] == stats["bytes_in_use"] == 1024 + 3 * MIB
    assert totals["cached_bytes"] == stats["cached_bytes"]
    assert totals["free_bytes"] == stats["free_bytes"]
    assert totals["mapped_bytes"] == stats["pool_bytes"]
    assert totals["requested_bytes"] == stats["requested_bytes"]
    assert totals["pinned_bytes"] == stats["pinned_bytes"] == 0
    assert totals["mapped_bytes"] + totals["unmapped_bytes"] == stats["address_bytes"]
    assert snapshot.by_kernel() == {"(python)": (2, 1024 + 3 * MIB, 1000 + 3 * MIB)}


def test_what_is_freed_is_cached_and_keeps_its_kernel() -> None:
    with jax_bfc.scratch(1000) as s:
        address = s.ptr
    first = next(jax_bfc.snapshot().chunks())
    assert first == _snapshot.Chunk(address, 1024, "cached", 0, "(python)")


def test_a_snapshot_is_whole_while_threads_allocate() -> None:
    stop = threading.Event()

    def work(seed: int) -> None:
        i = 0
        while not stop.is_set():
            i += 1
            with jax_bfc.scratch((seed * 7919 + i * 104729) % (256 << 10)):
                pass

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(30):
            check(jax_bfc.snapshot())
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_saved_snapshot_is_read_back(tmp_path: Path) -> None:
    with jax_bfc.scratch(1000), jax_bfc.scratch(5 * MIB):
        snapshot = jax_bfc.snapshot()
    snapshot.save(tmp_path / "a.json")
    assert _snapshot.read_snapshot(tmp_path / "a.json") == snapshot
    with pytest.raises(ValueError, match="format='x'; valid: 'jax_bfc', 'memory_viz'"):
        snapshot.save(tmp_path / "b.json", format="x")
    assert not (tmp_path / "b.json").exists()


def test_a_snapshot_that_could_not_be_read_back_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    path.write_text("older")
    snapshot = jax_bfc.snapshot()
    size = len(snapshot.to_json())
    monkeypatch.setattr(_snapshot, "MAX_FILE_BYTES", size - 1)
    with pytest.raises(ValueError, match=f"is {size} bytes of JSON; valid: up to"):
        snapshot.save(path)
    assert path.read_text() == "older"
    snapshot.save(tmp_path / "viz.json", format="memory_viz")
    monkeypatch.setattr(_snapshot, "MAX_FILE_BYTES", size)
    snapshot.save(path)
    assert _snapshot.read_snapshot(path) == snapshot
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.json", "viz.json"]


def test_a_snapshot_in_gz_is_read_back(tmp_path: Path) -> None:
    with jax_bfc.scratch(1000):
        snapshot = jax_bfc.snapshot()
    snapshot.save(tmp_path / "a.json.gz")
    assert (tmp_path / "a.json.gz").read_bytes().startswith(b"\x1f\x8b")
    assert _snapshot.read_snapshot(tmp_path / "a.json.gz") == snapshot


def test_a_plot_that_fails_leaves_the_older_image(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "a.nonsense"
    path.write_text("older")
    with pytest.raises(ValueError, match="nonsense"):
        jax_bfc.snapshot().plot(path)
    assert path.read_text() == "older"
    assert [file.name for file in tmp_path.iterdir()] == ["a.nonsense"]


def test_a_lane_between_two_streams_has_none(tmp_path: Path) -> None:
    with jax_bfc.scratch(1000):
        value = json.loads(jax_bfc.snapshot().to_json())
    value["lanes"][0]["stream"] = 2**64 - 2  # as older versions say it
    (tmp_path / "a.json").write_text(json.dumps(value))
    (lane,) = _snapshot.read_snapshot(tmp_path / "a.json").lanes
    assert lane.stream is None


def with_a_pin() -> jax_bfc.Snapshot:
    """As if a CUDA graph held the first chunk, of 1,024 bytes; one more is in use."""
    with jax_bfc.scratch(1000), jax_bfc.scratch(2000):
        snapshot = jax_bfc.snapshot()
    (lane,) = snapshot.lanes
    (region,) = lane.regions
    first, *others = region.chunks
    chunks = (dataclasses.replace(first, pinned=True), *others)
    region = dataclasses.replace(region, chunks=chunks)
    lane = dataclasses.replace(lane, regions=(region,))
    return dataclasses.replace(snapshot, lanes=(lane,))


def test_what_a_graph_holds_is_told_from_what_is_in_use(tmp_path: Path) -> None:
    snapshot = with_a_pin()
    value = check(snapshot)
    assert value["totals"]["pinned_bytes"] == 1024
    assert value["totals"]["in_use_bytes"] == 3072
    chunks = value["lanes"][0]["regions"][0]["chunks"]
    assert [chunk["pinned"] for chunk in chunks[:2]] == [True, False]
    snapshot.save(tmp_path / "a.json")
    read = _snapshot.read_snapshot(tmp_path / "a.json")
    assert read == snapshot
    assert [chunk.bytes for chunk in read.chunks() if chunk.pinned] == [1024]


def test_a_file_that_does_not_know_pins_is_read(tmp_path: Path) -> None:
    snapshot = with_a_pin()
    value = json.loads(snapshot.to_json())
    del value["totals"]["pinned_bytes"]
    for chunk in value["lanes"][0]["regions"][0]["chunks"]:
        del chunk["pinned"]
    (tmp_path / "old.json").write_text(json.dumps(value))
    read = _snapshot.read_snapshot(tmp_path / "old.json")
    assert not any(chunk.pinned for chunk in read.chunks())
    assert read.totals == snapshot.totals | {"pinned_bytes": 0}


# The fields that the viewer reads: MemoryViz.js and torch/cuda/_memory_viz.py.
SEGMENT = {
    "device": int,
    "address": int,
    "total_size": int,
    "allocated_size": int,
    "active_size": int,
    "requested_size": int,
    "stream": int,
    "segment_type": str,
    "segment_pool_id": list,
    "is_expandable": bool,
    "frames": list,
    "blocks": list,
}
BLOCK = {
    "address": int,
    "size": int,
    "requested_size": int,
    "state": str,
    "frames": list,
}


def test_memory_viz_has_the_fields_that_the_viewer_reads(tmp_path: Path) -> None:
    with jax_bfc.scratch(3 * MIB), jax_bfc.scratch(1000):
        with jax_bfc.scratch(20 * MIB):
            pass
        jax_bfc.trim()
        with jax_bfc.scratch(2000):
            pass
        snapshot = jax_bfc.snapshot()
    snapshot.save(tmp_path / "viz.json", format="memory_viz")
    value = json.loads((tmp_path / "viz.json").read_text())
    assert set(value) == {"segments", "device_traces"}
    assert value["segments"]
    states = set()
    for segment in value["segments"]:
        assert {key: type(item) for key, item in segment.items()} == SEGMENT
        # Else it is not drawn.
        assert 0 <= segment["device"] < len(value["device_traces"])
        # The viewer adds up sizes from the segment's address.
        end = segment["address"]
        for block in segment["blocks"]:
            assert {key: type(item) for key, item in block.items()} == BLOCK
            assert block["address"] == end
            end += block["size"]
            states.add(block["state"])
            for frame in block["frames"]:
                assert set(frame) == {"filename", "line", "name"}
        assert end == segment["address"] + segment["total_size"]
        active = [b for b in segment["blocks"] if b["state"] == "active_allocated"]
        assert segment["allocated_size"] == sum(b["size"] for b in active)
        assert segment["requested_size"] == sum(b["requested_size"] for b in active)
    assert states == {"active_allocated", "inactive"}
    total = sum(segment["total_size"] for segment in value["segments"])
    assert total == snapshot.totals["mapped_bytes"]
    # A category without one "unknown" among them stops the viewer: there is none.
    assert value["device_traces"] == [[]]


def test_memory_viz_says_what_a_graph_holds() -> None:
    value = json.loads(with_a_pin().to_memory_viz())
    blocks = value["segments"][0]["blocks"]
    names = [[frame["name"] for frame in block["frames"]] for block in blocks[:2]]
    assert names == [["(python)", "held by a CUDA graph"], ["(python)"]]


def test_a_plot_is_an_image(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with jax_bfc.scratch(1000), jax_bfc.scratch(5 * MIB):
        figure = jax_bfc.snapshot().plot(tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert "cpu:0: 5.0 MiB in use" in figure.axes[0].get_title()
    jax_bfc.reset()
    jax_bfc.snapshot().plot()  # of nothing
    (legend,) = with_a_pin().plot().legends
    assert legend.get_texts()[-1].get_text() == "held by CUDA graphs  1.0 KiB"


def good() -> dict[str, Any]:
    with jax_bfc.scratch(1000):
        value: dict[str, Any] = json.loads(jax_bfc.snapshot().to_json())
    return value


def broken(*path: Any, to: Any) -> str:
    value: Any = good()
    place = value
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = to
    return json.dumps(value)


CHUNK = ("lanes", 0, "regions", 0, "chunks", 0)


@pytest.mark.parametrize(
    ("path", "to", "text"),
    [
        (("version",), 2, "$.version is 2; valid: 1"),
        (("device",), None, "$.device is None; valid: string"),
        (("device",), "tpu:0", "$.device is 'tpu:0'; valid: ^(cpu|cuda):"),
        (("lanes",), {}, "$.lanes is an object; valid: array"),
        (("extra",), 1, "$ has 'extra'; valid: format, version"),
        (("limit_bytes",), True, "$.limit_bytes is True; valid: integer"),
        (("time",), float("nan"), "$.time is nan; valid: at least 0"),
        ((*CHUNK, "state"), "used", "valid: 'in_use', 'cached', 'waiting', 'free'"),
        ((*CHUNK, "pinned"), 1, "chunks[0].pinned is 1; valid: boolean"),
        ((*CHUNK, "bytes"), 0, "chunks[0].bytes is 0; valid: at least 1"),
        ((*CHUNK, "bytes"), 10**3000, "valid: at most 9007199254740991"),
        ((*CHUNK, "bytes"), 512, "where the last one ends"),
        ((*CHUNK[:-1],), [], "the chunks of the region at"),
        ((*CHUNK,), {}, "chunks[0] has no 'address'"),
    ],
)
def test_a_file_that_is_no_snapshot_is_refused(
    tmp_path: Path, path: tuple[Any, ...], to: Any, text: str
) -> None:
    file = tmp_path / "bad.json"
    file.write_text(broken(*path, to=to))
    with pytest.raises(_snapshot.SnapshotError, match=re.escape(text)) as caught:
        _snapshot.read_snapshot(file)
    assert str(caught.value).startswith(f"{file}: is no snapshot of jax_bfc: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04",
        b"[1, 2]",
        b'"jax_bfc snapshot',
        b'{"format": "jax_bfc snapshot", "a": ' + b"[" * 100_000,
        b'["jax_bfc snapshot", \xff]',
        b"[" * (1 << 20),
    ],
)
def test_what_is_no_json_is_refused(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "bad.json"
    file.write_bytes(data)
    with pytest.raises(_snapshot.SnapshotError, match="is no snapshot of jax_bfc"):
        _snapshot.read_snapshot(file)


def test_a_file_that_is_too_large_or_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(_snapshot.SnapshotError, match="cannot be read: No such file"):
        _snapshot.read_snapshot(tmp_path / "none.json")
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(_snapshot.SnapshotError, match="is larger than 16,777,216"):
        _snapshot.read_snapshot(tmp_path / "large.json")


@pytest.mark.parametrize("device", [1.5, 0, object()])
def test_a_device_of_the_wrong_type_is_refused(device: object) -> None:
    with unchanged(), pytest.raises(TypeError, match=r"valid: a jax\.Device"):
        jax_bfc.snapshot(device)
