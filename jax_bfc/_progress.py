"""Progress on a terminal, for what takes its time."""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def progress(text: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    """Shows `text` on stderr while the block runs, if that is a terminal.

    A bar with `rich <https://pypi.org/project/rich>`_ where that is installed, else
    one line. Nothing of it stays.

    Args:
        text: what is done.
        total: the number of steps, or None where they cannot be counted.

    Returns:
        A function to call after each step.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda: None
        return
    line = "".join(c if c.isprintable() else "?" for c in text)
    if importlib.util.find_spec("rich") is None:
        print(f"\r{line}...", end="", file=sys.stderr, flush=True)
        try:
            yield lambda: None
        finally:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        return
    rich: Any = importlib.import_module("rich.progress")
    console: Any = importlib.import_module("rich.console").Console(stderr=True)
    columns = (
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        rich.TimeElapsedColumn(),
    )
    with rich.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(line, total=total)
        yield lambda: bar.advance(task)
