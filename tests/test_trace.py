"""The trace reader, on good input and bad."""

from __future__ import annotations

import gzip
import pathlib
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_bfc import _trace

TRACES = pathlib.Path(__file__).parent / "traces"
OURS = "op,id,bytes,stream\n"
RMM = "Thread,Time,Action,Pointer,Size,Stream\n"


def write(
    directory: pathlib.Path, content: str | bytes, name: str = "t.csv"
) -> pathlib.Path:
    path = directory / name
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


# ---------------------------------------------------------------------------
# Good input.


def test_events_keep_their_order_and_frees_get_their_size(
    tmp_path: pathlib.Path,
) -> None:
    path = write(tmp_path, OURS + "a,7,1000,0\na,9,0,0\nf,7,1000,0\na,7,5,1\nf,9,,0\n")
    trace = _trace.read_trace(path)
    assert trace.is_allocate.tolist() == [1, 1, 0, 1, 0]
    assert trace.ids.tolist() == [0, 1, 0, 2, 1]
    assert trace.bytes.tolist() == [1000, 0, 1000, 5, 0]
    assert trace.is_allocate.dtype == np.uint8
    assert trace.ids.dtype == np.uint32
    assert trace.bytes.dtype == np.uint64
    assert len(trace) == 5


def test_rmm_logs_are_read_by_their_header(tmp_path: pathlib.Path) -> None:
    path = write(
        tmp_path,
        RMM
        + "1,10:40:21:123456,allocate,0x7f0000000000,256,0x0\n"
        + "1,10:40:21:123457,allocate failure,0x0,1099511627776,0x0\n"
        + "1,10:40:21:123458,allocate,(nil),0,0x0\n"
        + "2,10:40:21:123459,allocate,0X7F0000000100,300,0x0\n"
        + "2,10:40:21:123460,free,0x7f0000000000,256,0x0\n",
    )
    trace = _trace.read_trace(path)
    assert trace.is_allocate.tolist() == [1, 1, 0]
    assert trace.ids.tolist() == [0, 1, 0]
    assert trace.bytes.tolist() == [256, 300, 256]


@pytest.mark.parametrize(
    "text",
    [
        "bytes,op,extra,id\n64,a,x,1\n",
        "\ufeffop,id,bytes\r\na,1,64\r\n",
        '"op","id","bytes"\n"a","1","64"\n\n',
        "op, id, bytes\na, 1, 64",
    ],
    ids=["order", "bom and crlf", "quotes", "spaces and no last newline"],
)
def test_columns_are_found_however_they_are_written(
    text: str, tmp_path: pathlib.Path
) -> None:
    trace = _trace.read_trace(write(tmp_path, text))
    assert trace.bytes.tolist() == [64]


@pytest.mark.parametrize(
    ("name", "events", "peak_mib"),
    [("gpt", 98_237, 4581.1), ("deeplab", 24_472, 3647.3), ("moe", 47_592, 2632.3)],
)
def test_recorded_traces_have_their_documented_peaks(
    name: str, events: int, peak_mib: float
) -> None:
    trace = _trace.read_trace(TRACES / f"{name}_train.csv.gz")
    assert len(trace) == events
    signed = np.where(trace.is_allocate == 1, 1, -1) * trace.bytes.astype(np.int64)
    assert round(int(np.cumsum(signed).max()) / 2**20, 1) == peak_mib


@given(
    sizes=st.lists(st.integers(0, 2**40), min_size=1, max_size=30), seed=st.randoms()
)
@settings(deadline=None, max_examples=50)
def test_what_is_written_is_read_back(
    sizes: list[int], seed: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows, live = [], []
    for i, size in enumerate(sizes):
        rows.append((1, i, size))
        live.append(i)
        while live and seed.random() < 0.4:
            freed = live.pop(seed.randrange(len(live)))
            rows.append((0, freed, sizes[freed]))
    text = OURS + "".join(f"{'fa'[op]},{key + 10},{size},0\n" for op, key, size in rows)
    trace = _trace.read_trace(write(tmp_path_factory.mktemp("trace"), text, "t.csv.gz"))
    read = zip(
        trace.is_allocate.tolist(),
        trace.ids.tolist(),
        trace.bytes.tolist(),
        strict=True,
    )
    assert list(read) == rows


# ---------------------------------------------------------------------------
# Bad input: one line that names the file, the line, and what is valid.

BAD_LINES: dict[str, tuple[str | bytes, str]] = {
    "empty file": ("", r": is empty; valid: .*op,id,bytes,stream"),
    "header only": (OURS, r": has no events"),
    "foreign header": (
        "name,age\nx,1\n",
        r":1: the header is 'name,age'; valid: op,id,bytes",
    ),
    "missing column": ("op,id,stream\na,1,0\n", r":1: the header is"),
    "column twice": ("op,id,bytes,bytes\na,1,1,1\n", r":1: the header is"),
    "too few fields": (OURS + "a,1\n", r":2: 2 fields; valid: 4"),
    "too many fields": (OURS + "a,1,2,0,5\n", r":2: 5 fields; valid: 4"),
    "unknown op": (OURS + "x,1,2,0\n", r":2: op is 'x'; valid: a, f"),
    "negative size": (
        OURS + "a,1,-5,0\n",
        r":2: bytes is '-5'; valid: a whole number from 0",
    ),
    "size not whole": (OURS + "a,1,1.5,0\n", r":2: bytes is '1\.5'"),
    "size with underscore": (OURS + "a,1,1_000,0\n", r":2: bytes is '1_000'"),
    "size missing": (OURS + "a,1,,0\n", r":2: bytes is ''"),
    "size too large": (
        OURS + f"a,1,{2**46 + 1},0\n",
        r":2: bytes is .*70,368,744,177,664",
    ),
    "size of 4,000 digits": (OURS + f"a,1,{'9' * 4000},0\n", r":2: bytes is '999"),
    "live too large": (OURS + f"a,1,{2**46},0\na,2,1,0\n", r":3: .* bytes are live"),
    "id not a number": (OURS + "a,x,1,0\n", r":2: id is 'x'; valid: a whole number"),
    "free before allocation": (OURS + "f,1,1,0\n", r":2: frees 1, which is not live"),
    "freed twice": (
        OURS + "a,1,1,0\nf,1,1,0\nf,1,1,0\n",
        r":4: frees 1, which is not live",
    ),
    "allocated twice": (OURS + "a,1,1,0\na,1,1,0\n", r":3: allocates 1, which is live"),
    "bad pointer": (
        RMM + "1,2,allocate,0xzz,1,0\n",
        r":2: Pointer is '0xzz'; valid: an address",
    ),
    "bad action": (
        RMM + "1,2,grow,0x1,1,0\n",
        r":2: Action is 'grow'; valid: allocate, free",
    ),
    "long field": (
        OURS + "a," + "1" * 1_000_000 + ",1,0\n",
        r":2: a line of 4,096 characters",
    ),
    "long header": ("x" * 1_000_000, r":1: a line of 4,096 characters"),
    "binary": (bytes(range(256)) * 4, r":1: not text"),
    "utf-8 in a field": (OURS + "a,1,٣,0\n", r":2: not text"),
    "null bytes": (OURS.encode() + b"a,1\0,2,0\n", r":2: not text"),
    "gzip in disguise": (
        gzip.compress(b"op,id,bytes\n"),
        r": is gzip data; valid: .*\.gz",
    ),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_files_are_refused_by_line(case: str, tmp_path: pathlib.Path) -> None:
    content, message = BAD_LINES[case]
    path = write(tmp_path, content)
    with pytest.raises(_trace.TraceError, match=message) as caught:
        _trace.read_trace(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "valid: " in text
    assert text.isprintable()  # one line
    assert len(text) < 300 + len(str(path))


def test_long_numbers_of_any_base_are_refused_by_line(tmp_path: pathlib.Path) -> None:
    # int() alone refuses decimals beyond 4,300 digits and takes any hexadecimal.
    for row in ("1,2,allocate,0x" + "f" * 4000 + ",1,0\n", "1,2,allocate,0x,1,0\n"):
        path = write(tmp_path, RMM + row)
        with pytest.raises(_trace.TraceError, match=r":2: Pointer is '0x"):
            _trace.read_trace(path)


def test_lines_without_an_event_are_bounded(tmp_path: pathlib.Path) -> None:
    event = "1,2,allocate,0x100,1,0\n"
    failures = "1,2,allocate failure,0x0,1,0\n" * (1 << 17)
    path = write(tmp_path, RMM + failures + event)
    with pytest.raises(_trace.TraceError, match=r": 131,073 lines without an event"):
        _trace.read_trace(path)
    path = write(tmp_path, RMM + "\n" * ((1 << 17) - 3) + event)
    assert len(_trace.read_trace(path)) == 1


def test_live_allocations_are_bounded(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_trace, "MAX_LIVE", 3)
    rows = "a,1,1,0\na,2,1,0\nf,1,1,0\na,3,1,0\na,4,1,0\n"
    assert len(_trace.read_trace(write(tmp_path, OURS + rows))) == 5
    path = write(tmp_path, OURS + rows + "a,5,1,0\n")
    with pytest.raises(_trace.TraceError, match=r":7: too many .* live; .* at most 3"):
        _trace.read_trace(path)


FIELDS = st.one_of(
    st.sampled_from(["a", "f", "allocate", "free", "allocate failure", "(nil)", ""]),
    st.integers(-(2**70), 2**70).map(str),
    st.integers(0, 3).map(str),
    st.integers(0, 2**70).map(hex),
    st.text(max_size=20),
    st.integers(1, 10**6).map("9".__mul__),
)
FILES = st.one_of(
    st.binary(max_size=2000),
    st.builds(
        lambda header, rows: (header + "\n".join(map(",".join, rows))).encode(),
        st.sampled_from([OURS, RMM, "bytes,id,op\n", "op,id,bytes\r\n"]),
        st.lists(st.lists(FIELDS, min_size=2, max_size=6), max_size=12),
    ),
)


@given(content=FILES, packed=st.booleans(), cut=st.integers(0, 20))
@settings(deadline=None, max_examples=200)
def test_whatever_is_in_a_file_is_a_trace_or_one_line(
    content: bytes,
    packed: bool,
    cut: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / ("t.csv.gz" if packed else "t.csv")
    data = gzip.compress(content) if packed else content
    path.write_bytes(data[: len(data) - cut])
    try:
        trace = _trace.read_trace(path)
    except _trace.TraceError as error:
        text = str(error)
        assert text.startswith(str(path))
        assert text.isprintable()
        assert len(text) < 400 + len(str(path))
        return
    live = np.cumsum(np.where(trace.is_allocate == 1, 1, -1))
    assert live.min() >= 0
    assert trace.bytes.max() <= _trace.MAX_BYTES


def test_missing_files_and_folders_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(_trace.TraceError, match="cannot be read: No such file"):
        _trace.read_trace(tmp_path / "none.csv")
    with pytest.raises(_trace.TraceError, match="cannot be read: Is a directory"):
        _trace.read_trace(tmp_path)


def test_damaged_gzip_is_refused(tmp_path: pathlib.Path) -> None:
    rows = "".join(f"a,{i},{i * 977 % 4093},0\n" for i in range(5000))
    packed = gzip.compress((OURS + rows).encode())
    path = tmp_path / "t.csv.gz"
    damages = {
        packed[: len(packed) // 2]: "ends too early",
        packed[:-4]: "ends too early",
        packed[:6]: "ends too early",
        b"": "is empty",
        b"op,id,bytes\na,1,1\n": "not gzip data",
        packed[:-8] + b"\0" * 8: "not gzip data .*CRC",
        packed[:2000] + b"\xff" * 50 + packed[2050:]: "t.csv.gz",
    }
    for data, message in damages.items():
        path.write_bytes(data)
        with pytest.raises(_trace.TraceError, match=message):
            _trace.read_trace(path)


BOMBS = {
    "one endless line": b"0" * (200 << 20),
    "blank lines": OURS.encode() + b"\n" * (200 << 20),
    "valid lines": OURS.encode() + b"a,1,1,0\nf,1,1,0\n" * (12 << 20),
}


@pytest.mark.parametrize("case", BOMBS)
def test_zip_bombs_cost_little(case: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "bomb.csv.gz"
    path.write_bytes(gzip.compress(BOMBS[case], compresslevel=1))
    # In a process of its own, whose memory is nobody else's.
    code = (
        "import resource, sys\n"
        "from jax_bfc import _trace\n"
        "def mib(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "before = mib()\n"
        "try:\n"
        "    _trace.read_trace(sys.argv[1])\n"
        "except _trace.TraceError as error:\n"
        "    print(error, mib() - before, sep='\\n')\n"
    )
    run = subprocess.run(
        [sys.executable, "-P", "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    message, grown_mib = run.stdout.splitlines()
    assert message.startswith(str(path))
    assert re.search("unpacks to|a line of 4,096|131,073 blank lines", message)
    assert int(grown_mib) < 64
