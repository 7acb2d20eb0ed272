"""What the tests of views share: a recording and a snapshot to draw."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pools import LIMIT, MIB, fresh_pools

import jax_bfc
from jax_bfc import __main__ as command


@pytest.fixture(autouse=True)
def pools() -> Iterator[None]:
    with fresh_pools():
        yield


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "run.csv"
    with jax_bfc.record(path), jax_bfc.scratch(3 * MIB):
        for nbytes in (1000, 5000, MIB):
            with jax_bfc.scratch(nbytes), jax_bfc.scratch(2 * nbytes):
                pass
        with pytest.raises(jax_bfc.OutOfMemoryError), jax_bfc.scratch(2 * LIMIT):
            pass
    # A target may have any name.
    text = path.read_text().replace("(python)", "%3C/script%3E%3Cb%3E$x_1")
    path.write_text(text)
    return path


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    path = tmp_path / "map.json"
    with jax_bfc.scratch(3 * MIB), jax_bfc.scratch(1000):
        jax_bfc.snapshot().save(path)
    text = path.read_text().replace("(python)", "</script><b>$x_1")
    # As if a CUDA graph held the first chunk.
    path.write_text(text.replace('"pinned":false', '"pinned":true', 1))
    return path


def view(source: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["view", str(source), "-o", str(output)]) == 0
    assert capsys.readouterr().out == f"wrote {output}\n"


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert command.main(["view", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("jax_bfc: ")
    assert err.count("\n") == 1
    return err


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data
