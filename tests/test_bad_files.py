"""Good files with something wrong in them: read as they are, or refused in a line."""

import copy
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pools import run_python

from jax_bfc import __main__ as command
from jax_bfc import _blocks, _recording, _schema, _snapshot, _trace

SEEDS = range(10)
ROUNDS = 60
FIELDS = (
    *("0", "00", "-1", " 5", '"5"', "1_0", "1e3", "nan", "\0", "\x1c", "٣"),
    *("9" * 18, "9" * 19, str(2**46 + 1), str(2**63), str(2**64), "9" * 5000),
    *("0x", "0xg", "0X1f", "(nil)", "0x" + "f" * 16, "0x" + "f" * 17),
    *("a", "f", "allocate", "free", "allocate failure", "grow", "cpu:999"),
)
VALUES: Any = [
    *(None, True, False, 0, 1, -1, 1.0, 0.0, 1.5, 1e300, float("nan"), 2**53, 10**30),
    *("x", "", "free", "cpu:0", "cpu:0\n", "cuda:٣", [], {}, [None], {"x": 1}),
]


def events(
    number: int, allocate: Callable[..., str], free: Callable[..., str]
) -> list[str]:
    """Lines, each from its place, an id and a size."""
    rng = random.Random(number)
    live: list[tuple[int, int]] = []
    lines = []
    for i in range(number):
        if live and rng.random() < 0.5:
            lines.append(free(i, *live.pop(rng.randrange(len(live)))))
        else:
            live.append((i, rng.randrange(1, 1 << 20)))
            lines.append(allocate(i, *live[-1]))
    return lines


def ours() -> list[str]:
    lines = events(
        60,
        lambda _, key, size: f"a,{key},{size},0",
        lambda _, key, size: f"f,{key},{size},0",
    )
    return ["op,id,bytes,stream", *lines]


def recording() -> list[str]:
    def line(action: str) -> Callable[..., str]:
        return lambda i, key, size: (
            f"1,{i * 1000},{action},{0x7F0000000000 + key:#x},{size},0,{action},{key},"
            f"{size + 255 & ~255},cpu:0,%28python%29,"
        )

    lines = events(60, line("allocate"), line("free"))
    failure = "1,5000000,allocate failure,0x0,4096,0,grow,0,4096,cpu:0,,"
    return [_recording.HEADER, *lines, failure]


def rmm() -> list[str]:
    lines = [",".join(line.split(",")[:6]) for line in recording()]
    return [*lines, "1,5000001,allocate,0x0,0,0", "1,5000002,free,0x0,0,0"]


def snapshot() -> dict[str, Any]:
    def region(address: int) -> dict[str, Any]:
        chunks = [
            {
                "address": address + 256 * i,
                "bytes": 256,
                "state": state,
                "requested_bytes": 7,
                "kernel": "k",
            }
            for i, state in enumerate(("in_use", "free", "cached"))
        ]
        return {"address": address, "bytes": 768, "chunks": chunks}

    lanes = [
        {"lane": i, "stream": None, "regions": [region(4096), region(8192)]}
        for i in range(2)
    ]
    states = (*_snapshot.STATES, "mapped", "requested")
    return {
        "format": "jax_bfc snapshot",
        "version": 1,
        "device": "cpu:0",
        "time": 1.5,
        "limit_bytes": 1 << 30,
        "totals": {f"{state}_bytes": 0 for state in states},
        "lanes": lanes,
    }


def mutated(lines: list[str], rng: random.Random) -> bytes:
    """The file with one to three things wrong, or at least strange."""
    data = [line.encode() for line in lines]
    for _ in range(rng.randint(1, 3)):
        i, j = rng.randrange(len(data)), rng.randrange(len(data))
        match rng.randrange(9):
            case 0:  # cut, within a line too
                data[i:] = [data[i][: rng.randrange(len(data[i]) + 1)]]
            case 1:
                data.insert(i, data[j])
            case 2:
                data[i], data[j] = data[j], data[i]
            case 3:
                data.insert(i, rng.choice([b"", b" ", b"\r", b"\xef\xbb\xbf"]))
            case 4:
                data[i] += b"x" * rng.choice([1, 4000, 4096, 100_000])
            case 5:
                data = [line + b"\r" for line in data]
            case 6 if data[i]:
                at = rng.randrange(len(data[i]))
                data[i] = data[i][:at] + rng.randbytes(1) + data[i][at + 1 :]
            case _:
                fields = data[i].split(b",")
                field = rng.choice(["", rng.choice(FIELDS)])
                fields[rng.randrange(len(fields))] = field.encode()
                data[i] = b",".join(fields)
    return b"\n".join(data) + rng.choice([b"\n", b""])


def mutated_value(rng: random.Random) -> Any:
    value: Any = snapshot()
    for _ in range(rng.randint(1, 2)):
        place, key = value, rng.choice(list(value))
        while isinstance(place[key], dict | list) and place[key] and rng.random() < 0.8:
            place = place[key]
            keys = list(place) if isinstance(place, dict) else range(len(place))
            key = rng.choice(keys)
        if isinstance(place, dict) and rng.random() < 0.2:
            del place[key]
        elif isinstance(place, dict) and rng.random() < 0.2:
            place["extra"] = 1
        else:
            place[key] = copy.deepcopy(rng.choice(VALUES))
    return value


def one_line(error: Exception, path: Path) -> str:
    text = str(error)
    assert text.startswith(str(path))
    assert text.isprintable()
    assert len(text) < 400 + len(str(path))
    return text


def read_trace(path: Path) -> Any:
    try:
        trace = _trace.read_trace(path)
    except _trace.TraceError as error:
        return one_line(error, path)
    return [trace.is_allocate.tolist(), trace.ids.tolist(), trace.bytes.tolist()]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("lines", [ours, rmm, recording])
def test_blocks_of_lines_are_read_as_line_by_line(
    seed: int,
    lines: Callable[[], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = random.Random(seed)
    path = tmp_path / "t.csv"
    path.write_text("\n".join(lines()))
    assert len(read_trace(path)[0]) == 60
    for i in range(ROUNDS):
        print(f"seed {seed}, round {i}")
        path.write_bytes(mutated(lines(), rng))
        with monkeypatch.context() as patch:
            patch.setattr(_blocks, "_BLOCK", rng.choice([100, 1000, 1 << 18]))
            result = read_trace(path)
            patch.setattr(_trace, "split", lambda *_: None)
            assert read_trace(path) == result


@pytest.mark.parametrize("seed", SEEDS)
def test_a_recording_is_read_or_refused_in_a_line(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    path = tmp_path / "t.csv"
    path.write_text("\n".join(recording()))
    assert len(_recording.read_recording(path).events) == 61
    for i in range(ROUNDS):
        print(f"seed {seed}, round {i}")
        path.write_bytes(mutated(recording(), rng))
        try:
            read = _recording.read_recording(path, first=rng.choice([None, 10]))
        except _recording.RecordingError as error:
            one_line(error, path)
            continue
        times = read.events["time_ns"]
        assert (times[1:] >= times[:-1]).all()
        named = read.events["kernel"] != _recording.NO_KERNEL
        assert (read.events["kernel"][named] < len(read.kernels)).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_snapshot_is_checked_as_item_by_item(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    path = tmp_path / "t.json"

    def read() -> Any:
        try:
            return _snapshot.read_snapshot(path)
        except _snapshot.SnapshotError as error:
            return one_line(error, path)

    path.write_text(json.dumps(snapshot()))
    assert len(list(read().chunks())) == 12
    for i in range(ROUNDS):
        print(f"seed {seed}, round {i}")
        if rng.random() < 0.7:
            path.write_text(json.dumps(mutated_value(rng)))
        else:
            path.write_bytes(mutated([json.dumps(snapshot())], rng))
        with monkeypatch.context() as patch:
            patch.setattr(_schema, "_BLOCK", rng.choice([1, 2, 1024]))
            result = read()
            patch.setattr(_schema, "_are_valid", lambda *_: False)
            # As text, where NaN is NaN.
            assert repr(read()) == repr(result)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_document_is_accepted_as_jsonschema_does(seed: int) -> None:
    rng = random.Random(seed)
    schema = _snapshot.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    oracle = jsonschema.Draft202012Validator(schema)
    _schema.check(snapshot(), schema)
    refused = 0
    for i in range(5 * ROUNDS):
        value = mutated_value(rng)
        try:
            _schema.check(value, schema)
        except _schema.SchemaError:
            accepted = False
        else:
            accepted = True
        # NaN is no JSON: the oracle lets it through, and we do not.
        expected = oracle.is_valid(value) and "NaN" not in json.dumps(value)
        reasons = [error.message for error in oracle.iter_errors(value)]
        assert accepted == expected, f"seed {seed}, round {i}: {reasons}"
        refused += not accepted
    assert 0 < refused < 5 * ROUNDS


@pytest.mark.parametrize("seed", SEEDS)
def test_commands_end_well_or_with_a_line(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(seed)
    path = tmp_path / "t.csv"
    for i in range(5):
        path.write_bytes(mutated(rng.choice([ours, rmm, recording])(), rng))
        for arguments in (
            ["replay", str(path)],
            ["plan", str(path)],
            ["view", str(path), "-o", str(tmp_path / "t.html")],
        ):
            status = command.main(arguments)
            out, err = capsys.readouterr()
            where = f"seed {seed}, round {i}, {arguments[0]}: {err}"
            assert status in (0, 2), where
            assert (bool(out), err.count("\n")) == ((True, 0), (False, 1))[status // 2]
            assert str(path) in err or status == 0, where


@pytest.mark.parametrize("name", ["replay", "plan", "view"])
def test_a_bad_file_is_refused_without_jax(name: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("bad")
    arguments = [name, str(path)] + ["-o", "t.html"] * (name == "view")
    done = subprocess.run(
        [sys.executable, "-P", "-X", "importtime", "-m", "jax_bfc", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    modules, others = set(), []
    for line in done.stderr.splitlines():
        if line.startswith("import time:"):
            modules.add(line.rpartition("|")[2].strip())
        else:
            others.append(line)
    assert (done.returncode, len(others)) == (2, 1)
    assert "jax_bfc" in modules
    assert "jax" not in modules


def test_the_package_has_imported_jax() -> None:
    """Not at first use: what both do at exit is in order."""
    code = "import sys, jax_bfc; print('jax' in sys.modules)"
    assert run_python(code).stdout == "True\n"
