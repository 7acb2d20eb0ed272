"""jax_bfc.record(): every event of every pool."""

import gzip
import os
import re
import sys
import threading
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pools import LIMIT, MIB, fresh_pools, output_of

import jax_bfc
from jax_bfc import __main__ as command
from jax_bfc import _recording, _trace


@pytest.fixture(autouse=True)
def pools() -> Iterator[None]:
    with fresh_pools():
        yield


def kinds(recording: jax_bfc.Recording) -> list[str]:
    return [recording.KINDS[kind] for kind in recording.events["kind"]]


def churn() -> None:
    with jax_bfc.scratch(5 * MIB), jax_bfc.scratch(1000):
        pass
    with pytest.raises(jax_bfc.OutOfMemoryError), jax_bfc.scratch(2 * LIMIT):
        pass
    jax_bfc.trim()


CHURNED = ["grow", "allocate", "allocate", "free", "free", "trim", "failure"]


def test_a_recording_in_memory_has_every_event() -> None:
    held = jax_bfc.scratch(2000)
    with held, jax_bfc.record() as r:
        with pytest.raises(RuntimeError, match="the recording has not ended"):
            _ = r.events
        churn()
    assert kinds(r) == ["grow", "held", *CHURNED]
    assert r.num_events == len(r.events)
    assert r.dropped == 0
    one = r.events[4]
    assert (one["requested_bytes"], one["chunk_bytes"]) == (1000, 1024)
    assert r.kernels[one["kernel"]] == ("(python)", "")
    assert (r.events["time_ns"][1:] >= r.events["time_ns"][:-1]).all()


def test_a_recording_on_disk_is_the_same_and_can_be_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.csv"
    with jax_bfc.scratch(2000), jax_bfc.record(path) as r:
        churn()
    assert os.listdir(tmp_path) == ["run.csv"]
    assert kinds(r) == ["grow", "held", *CHURNED]
    assert r.num_events == 9
    read = _recording.read_recording(path)
    assert (read.events == r.events).all()
    assert read.kernels == [("(python)", "")]
    trace = _trace.read_trace(path)
    assert list(trace.is_allocate) == [1, 1, 1, 0, 0]
    assert list(trace.bytes) == [2000, 5 * MIB, 1000, 1000, 5 * MIB]
    assert command.main(["replay", str(path)]) == 0
    assert re.search(r"run.csv +bfc +5 ", capsys.readouterr().out)


def test_memory_keeps_the_newest_and_saves_what_can_be_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jax_bfc._record._KEPT_EVENTS", 2048)
    with jax_bfc.record() as r, jax_bfc.scratch(300):
        for _ in range(5000):
            with jax_bfc.scratch(1000):
                pass
    assert r.num_events == 10_003
    assert len(r.events) + r.dropped == r.num_events
    assert 2048 <= len(r.events) <= 4096
    r.save(tmp_path / "a.csv")
    trace = _trace.read_trace(tmp_path / "a.csv")  # frees follow allocations
    assert len(r.events) - 3 <= len(trace) <= len(r.events)


def test_threads_lose_nothing(tmp_path: Path) -> None:
    def work(seed: int) -> None:
        for i in range(2000):
            with jax_bfc.scratch((seed * 7919 + i * 104729) % (64 << 10)):
                pass

    with jax_bfc.record(tmp_path / "a.csv") as r:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    counts = Counter(kinds(r))
    assert counts["allocate"] == counts["free"] == 8000
    assert len(_trace.read_trace(tmp_path / "a.csv")) == 16_000


def test_there_is_one_recording_at_a_time(tmp_path: Path) -> None:
    with jax_bfc.record() as r:
        with pytest.raises(RuntimeError, match="a recording runs already"):
            jax_bfc.record().__enter__()
        with pytest.raises(RuntimeError, match="a recording runs already"):
            jax_bfc.record(tmp_path / "b.csv").__enter__()
    assert kinds(r) == []
    with jax_bfc.record() as r, jax_bfc.scratch(1):
        pass
    assert kinds(r) == ["grow", "allocate", "free"]


def test_a_path_that_cannot_be_written_is_known_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        jax_bfc.record(tmp_path / "none" / "a.csv").__enter__()
    with jax_bfc.record():  # nothing was started
        pass


def test_a_full_disk_is_an_error_of_the_block() -> None:
    if not os.access("/dev/full", os.W_OK) or not os.access("/dev/shm", os.W_OK):
        pytest.skip("needs /dev/full and /dev/shm")
    from jax_bfc import _core

    with open("/dev/full", "wb") as full:
        running = _core.RunningRecording(full.fileno(), 1)
        with jax_bfc.scratch(100):
            pass
        result = running.stop(full.fileno())
    assert result is not None
    events, dropped, error, _ = result
    assert (events, dropped) == (3, 3)
    assert os.strerror(error) == "No space left on device"


def test_threads_that_record_in_turns_each_write_their_own_file(tmp_path: Path) -> None:
    lengths: dict[str, list[int]] = {"a": [], "b": []}

    def work(name: str, nbytes: int) -> None:
        path = tmp_path / f"{name}.csv"
        while len(lengths[name]) < 300:
            try:
                with jax_bfc.record(path) as r, jax_bfc.scratch(nbytes):
                    pass
            except RuntimeError:  # the other one records
                continue
            events = _recording.read_recording(path).events
            own = events["requested_bytes"] == nbytes
            lengths[name].append(int(own.sum()) if r.num_events == len(events) else -1)

    threads = [
        threading.Thread(target=work, args=arguments)
        for arguments in (("a", 1000), ("b", 2000))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Each its own allocation and free, and no part of the other's file.
    assert lengths == {"a": [2] * 300, "b": [2] * 300}


def test_a_recording_that_nobody_holds_has_ended() -> None:
    from jax_bfc import _core

    running = _core.RunningRecording(-1, 1)
    with pytest.raises(RuntimeError, match="a recording runs already"):
        _core.RunningRecording(-1, 1)
    del running
    other = _core.RunningRecording(-1, 1)
    assert other.stop(-1) is not None
    assert other.stop(-1) is None


@pytest.mark.parametrize("path", [None, "a.csv"])
def test_an_interrupted_entry_leaves_nothing_that_runs(
    path: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    for place in ("time.time", "jax_bfc._record.Recording"):
        with monkeypatch.context() as patch:
            patch.setattr(place, interrupt)
            block = jax_bfc.record(path)
            with pytest.raises(KeyboardInterrupt) as caught:
                block.__enter__()
        with jax_bfc.record():  # although the traceback is still held
            pass
        del caught
    assert os.listdir(tmp_path) == []


@pytest.mark.filterwarnings("ignore:unclosed file")  # between open and its block
def test_an_interrupt_after_the_native_start_ends_the_recording(tmp_path: Path) -> None:
    """At every line of __enter__, as a signal may come."""
    entered = 0
    for stop_at in range(1, 40):
        block = jax_bfc.record(tmp_path / "a.csv")
        lines = 0

        def trace(
            frame: types.FrameType, event: str, _: object, stop_at: int = stop_at
        ) -> Any:
            nonlocal lines
            if frame.f_code.co_filename.endswith("_record.py") and event == "line":
                lines += 1
                if lines == stop_at:
                    raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            block.__enter__()
        except KeyboardInterrupt:
            sys.settrace(before)
        else:
            sys.settrace(before)
            block.__exit__(None, None, None)
            entered += 1
        with jax_bfc.record():
            pass
    assert 0 < entered < 39


def test_a_refused_recording_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    path.write_text("older")
    with jax_bfc.record(), pytest.raises(RuntimeError, match="runs already"):
        jax_bfc.record(path).__enter__()
    assert path.read_text() == "older"
    assert os.listdir(tmp_path) == ["run.csv"]


def test_the_older_file_stays_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    path.write_text("older")
    path.chmod(0o640)
    link = tmp_path / "link.csv"
    link.symlink_to(path)
    with jax_bfc.record(link), jax_bfc.scratch(1000):
        assert path.read_text() == "older"
        assert sorted(os.listdir(tmp_path)) == ["link.csv", "run.csv"]
    assert link.is_symlink()
    assert len(_recording.read_recording(path).events) == 3
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(tmp_path)) == ["link.csv", "run.csv"]


def test_a_name_in_gz_is_compressed_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "run.csv.gz"
    with jax_bfc.record(path) as r, jax_bfc.scratch(1000):
        pass
    assert gzip.decompress(path.read_bytes()).startswith(_recording.HEADER.encode())
    assert kinds(r) == ["grow", "allocate", "free"]
    assert len(_trace.read_trace(path)) == 2
    with jax_bfc.record() as in_memory, jax_bfc.scratch(1000):
        pass
    in_memory.save(tmp_path / "b.csv.gz")
    saved = _recording.read_recording(tmp_path / "b.csv.gz")
    assert (saved.events["id"] == in_memory.events["id"]).all()
    assert sorted(os.listdir(tmp_path)) == ["b.csv.gz", "run.csv.gz"]


def test_an_empty_recording_has_ended(tmp_path: Path) -> None:
    with jax_bfc.record() as r:
        pass
    assert (len(r.events), r.num_events) == (0, 0)
    with jax_bfc.record(tmp_path / "a.csv") as r:
        pass
    assert (len(r.events), r.num_events) == (0, 0)


def test_a_relative_path_is_of_the_folder_where_record_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    block = jax_bfc.record("a.csv")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir("other")
    with block as r, jax_bfc.scratch(1000):
        pass
    assert r.path == str(tmp_path / "a.csv")
    assert kinds(r) == ["grow", "allocate", "free"]
    assert os.listdir(".") == []


def test_a_folder_that_is_gone_is_an_error_and_the_recording_ends(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    block = jax_bfc.record(folder / "a.csv")
    r = block.__enter__()
    folder.rmdir()
    with pytest.raises(FileNotFoundError):
        block.__exit__(None, None, None)
    assert len(r.events) == 0
    with jax_bfc.record():
        pass


def test_a_forked_child_records_nothing(tmp_path: Path) -> None:
    code = f"""
        import os
        import jax_bfc
        from jax_bfc import _core
        with jax_bfc.record({str(tmp_path / "a.csv")!r}) as r:
            _core.allocate(0, 100, 256).close()
            pid = os.fork()
            if pid == 0:
                _core.allocate(0, 100, 256).close()
        if pid == 0:
            os._exit(0 if r.num_events == 0 else 1)
        print(os.waitpid(pid, 0)[1], r.num_events)
    """
    assert output_of(code) == "0 3"


def test_a_block_left_open_at_the_end_is_harmless(tmp_path: Path) -> None:
    code = f"""
        import jax_bfc
        from jax_bfc import _core
        r = jax_bfc.record({str(tmp_path / "a.csv")!r})
        r.__enter__()
        for _ in range(5000):
            _core.allocate(0, 100, 256).close()
        print("ok")
    """
    assert output_of(code) == "ok"


LINE = "0,5,allocate,0x1000,5,0,allocate,7,256,cpu:0,k,"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", ":1: is no recording"),
        ("op,id,bytes,stream\na,1,2,0\n", ":1: is no recording"),
        (f"{LINE}\n{LINE[2:]}\n", ":3: is no event"),
        (LINE.replace("allocate,7", "take,7"), ":2: is no event"),
        (LINE.replace(",5,a", ",-5,a"), ":2: is no event"),
        (LINE.replace("0x1000", "0x" + "f" * 5000), ":2: is no event"),
        (LINE.replace("cpu:0", "cpu:2048"), ":2: is no event"),
        (LINE.replace("cpu:0", "tpu:0"), ":2: is no event"),
        (LINE.replace(",7,", f",{2**64},"), ":2: is no event"),
        (LINE + "\n" + LINE.replace(",5,a", ",4,a"), ":3: is no event"),
        (LINE + "x,y,z", ":2: is no event"),
        ("\0" * 10_000_000, ":2: is no event"),
        ("é", ":2: is no event"),
    ],
)
def test_a_file_that_is_no_recording_is_refused(
    tmp_path: Path, text: str, where: str
) -> None:
    path = tmp_path / "bad.csv"
    header = "" if where.startswith(":1:") else _recording.HEADER + "\n"
    path.write_text(header + text)
    with pytest.raises(jax_bfc.RecordingError, match=re.escape(f"{path}{where}")) as e:
        _recording.read_recording(path)
    assert "\n" not in str(e.value)


def test_ways_to_write_a_name_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_recording, "_MAX_KERNELS", 2)
    lines = [f"{LINE[:-2]}{name},\n" for name in ("a", "%61", "a", "%62")]
    path = tmp_path / "a.csv"
    path.write_text(_recording.HEADER + "\n" + "".join(lines[:3]))
    read = _recording.read_recording(path)
    assert [read.kernels[i] for i in read.events["kernel"]] == [("a", "")] * 3
    path.write_text(_recording.HEADER + "\n" + "".join(lines))
    with pytest.raises(jax_bfc.RecordingError, match=":5: is no event"):
        _recording.read_recording(path)
