"""``python -m jax_bfc``: replay allocation traces, draw snapshots and recordings,
and show what is in force.

Exit status: 0; 2 and one line on stderr for input that makes no sense.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from jax_bfc import _trace

_POLICIES: Final = ("bfc",)


class _Error(Exception):
    """Bad input; the text is the line for stderr."""


class _Parser(argparse.ArgumentParser):
    """Reports a bad command line in one line."""

    def error(self, message: str) -> NoReturn:
        raise _Error(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m jax_bfc", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    info = commands.add_parser(
        "info", help="versions, devices, configuration and statistics"
    )
    info.set_defaults(run=_info)

    replay = commands.add_parser(
        "replay",
        help="how well a policy places the allocations of a trace",
        description="Replays traces on simulated memory: CSV with the columns "
        "op,id,bytes,stream or RMM's log, gzip if the name ends in .gz.",
    )
    replay.add_argument("traces", nargs="+", metavar="TRACE")
    replay.add_argument(
        "--policy",
        action="append",
        choices=_POLICIES,
        help="may be given again; default: all",
    )
    replay.add_argument(
        "--json", action="store_true", help="a list of objects, bytes as integers"
    )
    replay.set_defaults(run=_replay)

    view = commands.add_parser(
        "view",
        help="a snapshot or a recording as a page, a trace, or an image",
        description="Draws a file of jax_bfc.snapshot().save() or jax_bfc.record(). "
        "The output's suffix says what: .html, one page that needs nothing else; "
        ".json, for ui.perfetto.dev (recordings) or PyTorch's memory_viz "
        "(snapshots); .png, with matplotlib.",
    )
    view.add_argument("source", metavar="SNAPSHOT|RECORDING")
    view.add_argument("-o", dest="output", metavar="FILE", required=True)
    view.set_defaults(run=_view)
    return parser


def _replay_one(trace: _trace.Trace, policy: str) -> dict[str, Any]:
    core = importlib.import_module("jax_bfc._core")
    try:
        result = core.replay(trace.is_allocate, trace.ids, trace.bytes)
    except ValueError as error:
        raise _Error(f"{trace.path}: {error}") from error
    return {"trace": trace.path, "policy": policy, **result}


def _replay(options: argparse.Namespace) -> str:
    policies = dict.fromkeys(options.policy or _POLICIES)
    # All are read before the first is replayed: a bad one is known at once.
    traces = [_trace.read_trace(path) for path in options.traces]
    rows = [_replay_one(trace, policy) for trace in traces for policy in policies]
    if options.json:
        return json.dumps(rows, indent=2)
    header = (
        "trace",
        "policy",
        "events",
        "peak live",
        "high water",
        "ratio",
        "mapped",
        "ns/event",
    )
    table = [
        (
            os.path.basename(row["trace"]),
            row["policy"],
            f"{row['events']:,}",
            _mib(row["peak_live_bytes"]),
            _mib(row["high_water_bytes"]),
            f"{row['ratio']:.4f}",
            _mib(row["mapped_bytes"]) if "mapped_bytes" in row else "-",
            f"{row['ns_per_event']:.1f}",
        )
        for row in rows
    ]
    return _table([header, *table], text_columns=2)


def _view(options: argparse.Namespace) -> str:
    files = importlib.import_module("jax_bfc._views._files")
    try:
        files.view(options.source, options.output)
    except files.ViewError as error:
        raise _Error(str(error)) from error
    return f"wrote {options.output}"


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MiB"


def _table(rows: Sequence[Sequence[str]], *, text_columns: int) -> str:
    """Aligned columns: the first ones to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i < text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _section(title: str, values: dict[str, Any]) -> list[str]:
    width = max(map(len, values), default=0)
    return [
        title,
        *(f"  {key.ljust(width)}  {_show(value)}" for key, value in values.items()),
    ]


def _show(value: object) -> str:
    return (
        f"{value:,}"
        if isinstance(value, int) and not isinstance(value, bool)
        else str(value)
    )


def _info(_: argparse.Namespace) -> str:
    # Here, because replay must not wait for a backend.
    jax = importlib.import_module("jax")
    jax_bfc = importlib.import_module("jax_bfc")

    versions = {name: _version(name) for name in ("jax_bfc", "jax", "jaxlib", "numpy")}
    versions["python"] = platform.python_version()
    versions["system"] = (
        f"{platform.system()} {platform.release()} {platform.machine()}"
    )
    lines = _section("versions", versions)
    try:
        devices = jax.local_devices()
    except RuntimeError as error:
        raise _Error(
            f"JAX has no usable backend: {str(error).splitlines()[0]}"
        ) from error
    for device in devices:
        config = dataclasses.asdict(jax_bfc.get_config(device))
        lines += [
            "",
            *_section(f"{device.platform}:{device.id} {device.device_kind}", config),
        ]
        lines += ["", *_section("  statistics", jax_bfc.memory_stats(device))]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status."""
    try:
        options = _parser().parse_args(arguments)
        text = options.run(options)
    except (_Error, _trace.TraceError) as error:
        line = " ".join(str(error).split())
        print(f"jax_bfc: {line}", file=sys.stderr)
        return 2
    try:
        print(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has left, as `| head` does. What is still buffered goes
        # nowhere, or the interpreter would complain of it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
