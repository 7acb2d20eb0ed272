"""What pages and images of snapshots and recordings show, and pages in a browser."""

import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pools import MIB
from views import data_of, pools, recording, snapshot, view

import jax_bfc
from jax_bfc import _recording

__all__ = ["pools", "recording", "snapshot"]  # fixtures


def two_devices(folder: Path, kernels: int = 1) -> Path:
    """A recording that has 4 s of nothing after what was held at its beginning."""
    start = 4_000_000_000
    lines = [
        "0,0,allocate failure,0x0,0,0,grow,0,65536,cpu:0,,",
        "0,5,allocate,0x100,100,0,held,1,256,cpu:0,k0,",
    ]
    for i in range(kernels):
        for device, offset in (("cpu:0", 0), ("cuda:0", 1)):
            number = 2 * i + offset + 2
            row = f"0x{number * 4096:x},1000,0,{{}},{number},1024,{device},k{i},"
            lines.append(f"0,{start},allocate,{row.format('allocate')}")
            lines.append(f"0,{start + 10},free,{row.format('free')}")
            start += 20
    path = folder / "two.csv"
    path.write_text("\n".join([_recording.HEADER, *lines]))
    return path


def test_a_picture_begins_with_the_first_event(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = two_devices(tmp_path)
    view(path, tmp_path / "a.html", capsys)
    data = data_of((tmp_path / "a.html").read_text())
    assert data["start_ns"] == 4_000_000_000
    assert "0 is 4 s after the recording began" in data["about"]
    assert f"by jax_bfc {jax_bfc.__version__}" in data["about"]
    assert "file written 20" in data["about"]
    # What was held before is in the first point that is shown.
    assert data["counters"][0][:3] == [[0, 0, 0], [0, 0, 65536], [5, 256, 65536]]


def test_every_kernel_has_a_colour_of_its_own_that_is_no_grey(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = two_devices(tmp_path, kernels=40)
    view(path, tmp_path / "a.html", capsys)
    data = data_of((tmp_path / "a.html").read_text())
    found = data["colours"]
    assert len(set(found)) == len(data["kernels"]) == 40
    for colour in found:
        parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert max(parts) - min(parts) > 40, colour


def test_the_table_has_what_a_kernel_held_at_most(
    recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    view(recording, recording.with_suffix(".html"), capsys)
    data = data_of(recording.with_suffix(".html").read_text())
    assert data["columns"][3] == "peak"
    assert data["rows"][0][3] == 6 * MIB


def test_the_page_of_a_snapshot_says_when_and_what_limit(
    snapshot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    view(snapshot, snapshot.with_suffix(".html"), capsys)
    about = data_of(snapshot.with_suffix(".html").read_text())["about"]
    assert re.match(
        r"taken 20\d\d-\d\d-\d\d .* UTC  ·  limit 64.0 MiB  ·  drawn", about
    )


def test_no_text_of_an_image_is_outside_it(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    from jax_bfc._views._plot import plot_recording

    recording = _recording.read_recording(two_devices(tmp_path))
    figure = plot_recording(recording, "two.csv")
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(io.BytesIO())
    ticks = {
        id(label)
        for axes in figure.axes
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels())
    }
    texts = [
        text
        for text in figure.findobj(Text)
        if text.get_text() and id(text) not in ticks  # not all of them are drawn
    ]
    assert any("cuda:0" in text.get_text() for text in texts)
    for text in texts:
        box = text.get_window_extent()
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1, text
        assert box.y1 <= figure.bbox.y1, text
    left, right = figure.axes[0], figure.axes[2]
    assert left.get_ylim()[1] < 0.1 < right.get_ylim()[1] * 2  # scales of their own


@pytest.mark.parametrize("source", ["recording", "snapshot"])
def test_the_page_runs_in_a_browser(
    source: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(names)} is installed")
    path: Path = request.getfixturevalue(source)
    output = path.with_suffix(".html")
    view(path, output, capsys)
    # Uses the page as a person would; what it finds goes where the test reads it.
    use = """<script>
      const result = {ready: document.body.dataset.ready};
      const rows = () => document.querySelectorAll("tbody tr").length;
      result.rows = rows();
      const search = document.getElementById("search");
      search.value = "nothing of this name"; search.oninput();
      result.found = rows();
      search.value = "X_1"; search.oninput();
      result.again = rows();
      const span = () => (view.t1 - view.t0) * (view.a1 - view.a0), before = span();
      document.getElementById("map").dispatchEvent(
          new WheelEvent("wheel", {deltaY: -500, clientX: 300, clientY: 300}));
      result.zoomed = span() < before;
      document.getElementById("reset").click();
      result.whole = span() === before;
      const map = document.getElementById("map");
      const press = (element, key) =>
          element.dispatchEvent(new KeyboardEvent("keydown", {key}));
      press(map, "+");
      result.keys = span() < before;
      press(map, "0");
      result.keys = result.keys && span() === before;
      document.querySelector("tbody tr").focus();
      press(document.activeElement, "Enter");
      result.chosen = document.activeElement.className === "chosen";
      press(document.activeElement, "Enter");
      const touch = (type, pointerId, clientX) => map.dispatchEvent(new PointerEvent(
          type, {pointerId, pointerType: "touch", clientX, clientY: 350}));
      touch("pointerdown", 7, 300); touch("pointerdown", 8, 320);
      touch("pointermove", 8, 500);
      touch("pointerup", 7, 300); touch("pointerup", 8, 500);
      result.pinched = span() < before;
      document.getElementById("reset").click();
      const c = document.getElementById("map");
      const pixels = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
      result.drawn = pixels.some((value) => value > 0);
      const box = c.getBoundingClientRect();
      c.dispatchEvent(new PointerEvent(
          "pointermove", {clientX: box.left + 3, clientY: box.top + 3}));
      result.pinned = document.getElementById("tip").textContent.includes("pinned");
      result.hatched = document.getElementById("what").textContent.includes("hatched");
      document.title = JSON.stringify(result);
    </script>"""
    output.write_text(output.read_text() + use)
    command_line = [browser, "--headless", "--no-sandbox", "--disable-gpu"]
    command_line += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [*command_line, output.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    found = re.search(r"<title>(.*?)</title>", done.stdout)
    assert found is not None, done.stderr
    result = json.loads(found[1])
    assert int(result.pop("ready")) > 0
    assert result == {
        "rows": 1,
        "found": 0,
        "again": 1,
        "zoomed": True,
        "keys": True,
        "chosen": True,
        "pinched": True,
        "whole": True,
        "drawn": True,
        "pinned": source == "snapshot",
        "hatched": source == "snapshot",
    }
