"""python -m jax_bfc view: what it takes, and the files that it writes."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from pools import MIB
from views import data_of, pools, recording, refused, snapshot, view

from jax_bfc import __main__ as command
from jax_bfc import _recording

__all__ = ["pools", "recording", "snapshot"]  # fixtures


def test_view_as_json_names_both_files(
    snapshot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(snapshot.with_suffix(".html"))
    assert command.main(["view", str(snapshot), "-o", output, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"source": str(snapshot), "output": output}


def test_a_trace_has_a_slice_for_each_allocation_and_counters(
    recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = recording.with_suffix(".json")
    view(recording, output, capsys)
    events = json.loads(output.read_text())["traceEvents"]
    phases: dict[str, list[Any]] = {}
    for event in events:
        phases.setdefault(event["ph"], []).append(event)
    assert [e["args"]["name"] for e in phases["M"]] == ["cpu:0"]
    assert len(phases["b"]) == len(phases["e"]) == 7
    ends = {event["id"]: event for event in phases["e"]}
    for begin in phases["b"]:
        end = ends[begin["id"]]
        assert end["ts"] >= begin["ts"]
        for key in ("cat", "name", "pid", "tid"):
            assert begin[key] == end[key]
        assert begin["args"]["chunk_bytes"] >= begin["args"]["requested_bytes"]
    in_use = [event["args"]["in use"] for event in phases["C"]]
    assert max(in_use) == 6 * MIB
    assert in_use[-1] == 0
    names = {event["name"].split()[0] for event in phases["i"]}
    assert names == {"grow", "trim", "failure"}
    times = [event["ts"] for event in events if "ts" in event]
    assert times == sorted(times)


def test_a_page_of_a_recording_is_whole_in_itself(
    recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = recording.with_suffix(".html")
    view(recording, output, capsys)
    page = output.read_text()
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=|https?:|@import|@DATA@|@TITLE@", page)
    assert page.count("</script>") == 2  # no name ends the data
    data = data_of(page)
    assert data["kernels"] == ["</script><b>$x_1"]
    assert data["rows"][0][0] == len(data["chunks"]) == 7
    assert max(point[1] for point in data["counters"][0]) == 6 * MIB


def test_a_page_of_a_snapshot_has_its_chunks(
    snapshot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = snapshot.with_suffix(".html")
    view(snapshot, output, capsys)
    data = data_of(output.read_text())
    assert data["rows"] == [[2, 3 * MIB + 1024, 3 * MIB + 1000]]
    assert {chunk[7] for chunk in data["chunks"]} == {"in_use", "free"}
    assert [chunk[5] for chunk in data["chunks"] if chunk[8]] == [3 * MIB]
    assert "cpu:0: 3,145,728 bytes pinned" in data["notes"]


def test_a_snapshot_becomes_memory_viz(
    snapshot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = snapshot.with_name("viz.json")
    view(snapshot, output, capsys)
    assert set(json.loads(output.read_text())) == {"segments", "device_traces"}


@pytest.mark.parametrize("source", ["recording", "snapshot"])
def test_images(
    source: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    path: Path = request.getfixturevalue(source)
    view(path, path.with_suffix(".png"), capsys)
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_long_recording_is_cut_and_says_so(
    recording: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jax_bfc._views._files._MOST_EVENTS", 5)
    view(recording, recording.with_suffix(".html"), capsys)
    data = data_of(recording.with_suffix(".html").read_text())
    assert data["notes"] == ["The first 5 events of the file."]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is no snapshot"),
        (b"\x00" * (8 << 20), "is no snapshot"),
        (b'{"format": "jax_bfc snapshot"' + b" " * (32 << 20), "is larger than 16,777"),
        (b"name,age\nx,1\n", "is no snapshot, recording or trace"),
        (b"op,id,bytes,stream\nf,0,1,0\n", ":2: frees 0, which is not live"),
        (b'{"format": "jax_bfc snapshot"}', "$ has no 'version'"),
        (b'{"format": "jax_bfc snapshot", "x": ' + b"[" * 10**6, "is no snapshot"),
        (_recording.HEADER.encode() + b"\n", "has no events"),
        (_recording.HEADER.encode() + b"\n" + b"1," * 10**7, ":2: is no event"),
    ],
)
def test_a_bad_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, text: str
) -> None:
    path = tmp_path / "bad"
    if content is not None:
        path.write_bytes(content)
    output = tmp_path / "out.html"
    line = refused([str(path), "-o", str(output)], capsys)
    assert str(path) in line
    assert text in line
    assert not output.exists()


def test_a_bad_output_is_one_line(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused([str(recording), "-o", "out.txt"], capsys)
    assert "valid: .html, .json, .png" in line
    line = refused([str(recording), "-o", str(tmp_path / "no" / "a.html")], capsys)
    assert "cannot be written: No such file" in line
    assert "-o" in refused([str(recording)], capsys)
    assert "cannot be read: Is a directory" in refused(
        [str(tmp_path), "-o", "a.html"], capsys
    )


@pytest.mark.parametrize("how", ["same", "other spelling", "link", "hard link"])
def test_a_source_is_not_replaced_by_its_view(
    how: str, snapshot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot.read_bytes()
    output = snapshot.with_name("other.json")
    match how:
        case "link":
            output.symlink_to(snapshot)
        case "hard link":
            output.hardlink_to(snapshot)
        case "other spelling":
            output = snapshot.parent / ".." / snapshot.parent.name / snapshot.name
        case _:
            output = snapshot
    line = refused([str(snapshot), "-o", str(output)], capsys)
    assert "is the file that is drawn" in line
    assert snapshot.read_bytes() == before


def test_a_view_that_fails_leaves_the_older_output(
    recording: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = recording.with_name("page.html")
    output.write_text("older")

    def fail(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jax_bfc._views._files.recording_page", fail)
    files = sorted(recording.parent.iterdir())
    assert "cannot be written: No space" in refused(
        [str(recording), "-o", str(output)], capsys
    )
    assert output.read_text() == "older"
    monkeypatch.setattr("jax_bfc._views._files.recording_page", interrupted)
    assert refused([str(recording), "-o", str(output)], capsys).endswith("rupted\n")
    assert output.read_text() == "older"
    assert sorted(recording.parent.iterdir()) == files


def interrupted(*_: object, **__: object) -> str:
    raise KeyboardInterrupt


@pytest.mark.parametrize("suffix", [".html", ".json", ".png"])
@pytest.mark.parametrize(
    "text",
    [
        "op,id,bytes,stream\na,1,1000,0\na,2,3000,0\nf,1,1000,0\n",
        "Thread,Time,Action,Pointer,Size,Stream\n1,00:00:00:000001,allocate,0x10,9,0x0",
        "\ufeffop,id,bytes\na,1,1000\n",
    ],
    ids=["ours", "rmm", "bom"],
)
def test_a_trace_that_replay_takes_is_drawn(
    text: str, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if suffix == ".png":
        pytest.importorskip("matplotlib")
    path = tmp_path / "t.csv"
    path.write_text(text)
    view(path, path.with_suffix(suffix), capsys)
    packed = tmp_path / "t.csv.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    view(packed, path.with_suffix(suffix), capsys)


def test_the_page_of_a_trace_has_its_live_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("op,id,bytes,stream\na,1,1000,0\na,2,3000,0\nf,1,1000,0\n")
    view(path, tmp_path / "t.html", capsys)
    data = data_of((tmp_path / "t.html").read_text())
    assert [point[1] for point in data["counters"][0]] == [0, 1000, 4000, 3000]
    assert (data["unit"], data["devices"], data["chunks"]) == ("events", ["trace"], [])


@pytest.mark.parametrize("prepare", ["bom", "gz", "crlf"])
def test_a_recording_is_drawn_however_it_was_kept(
    prepare: str, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = recording.read_bytes()
    path = recording.with_name("kept.csv.gz" if prepare == "gz" else "kept.csv")
    match prepare:
        case "bom":
            data = b"\xef\xbb\xbf" + data
        case "gz":
            data = gzip.compress(data)
        case _:
            data = data.replace(b"\n", b"\r\n")
    path.write_bytes(data)
    view(path, recording.with_name("a.html"), capsys)
    view(recording, recording.with_name("b.html"), capsys)
    pages = [recording.with_name(name).read_text() for name in ("a.html", "b.html")]
    assert data_of(pages[0])["chunks"] == data_of(pages[1])["chunks"]


def test_gzip_data_under_another_name_is_told(
    recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recording.with_name("packed.csv")
    path.write_bytes(gzip.compress(recording.read_bytes()))
    line = refused([str(path), "-o", str(recording.with_name("a.html"))], capsys)
    assert "is gzip data; valid: a name that ends in .gz" in line
