"""``python -m jax_bfc``: replay and plan traces, draw snapshots and recordings,
show what is in force, and measure it.

Exit status: 0; 2 and one line on stderr for input that makes no sense, or output that
cannot be written.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final, NoReturn, TextIO

from jax_bfc import _core, _offline, _trace
from jax_bfc._progress import progress
from jax_bfc._summary import align

_POLICIES: Final = _core.policies()


class _Error(Exception):
    """Bad input; the text is the line for stderr."""


class _Help(Exception):
    """The text is what was asked for."""


class _Parser(argparse.ArgumentParser):
    """Reports a bad command line in one line, and prints nothing by itself."""

    def print_help(self, file: object = None) -> NoReturn:
        raise _Help(self.format_help())

    def error(self, message: str) -> NoReturn:
        raise _Error(f"{message}; see {self.prog} --help")


_TRACES: Final = (
    "which are CSV with the columns op,id,bytes,stream or RMM's log, gzip if the name "
    "ends in .gz; - is standard input."
)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m jax_bfc", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    info = commands.add_parser(
        "info", help="versions, devices, configuration and statistics"
    )
    info.add_argument("--json", action="store_true", help="an object")
    info.set_defaults(run=_info)

    replay = commands.add_parser(
        "replay",
        help="how well a policy places the allocations of a trace",
        description=f"Replays traces on simulated memory, {_TRACES} bfc is the "
        "arena; the others are references, whose ns/event say nothing of the "
        "allocators that they are named after. internal: chunk bytes minus requested "
        "bytes; external: 1 - largest free / total free; both when the live bytes "
        "first peaked. mapped: by growth in steps.",
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
    _add_trace_options(replay)
    replay.set_defaults(run=_replay)

    plan = commands.add_parser(
        "plan",
        help="the smallest pool that would have served a trace",
        description=f"The smallest pool that would have served a trace, {_TRACES} "
        "The limit is one that the arena was tried with, all in one order of "
        "execution; what front caches and CUDA graphs hold comes on top.",
    )
    plan.add_argument("trace", metavar="TRACE")
    plan.add_argument(
        "--json",
        action="store_true",
        help="an object, bytes as integers; a list of them for several devices",
    )
    _add_trace_options(plan)
    plan.set_defaults(run=_plan)

    view = commands.add_parser(
        "view",
        help="a snapshot, a recording or a trace as a page, a trace, or an image",
        description="Draws a file of jax_bfc.snapshot().save() or jax_bfc.record(), "
        "or the live bytes of a trace that replay takes; - is standard input. "
        "The output's suffix says what: .html, one page that needs nothing else; "
        ".json, for ui.perfetto.dev (recordings) or PyTorch's memory_viz "
        "(snapshots); .png, with matplotlib.",
    )
    view.add_argument("source", metavar="SNAPSHOT|RECORDING|TRACE")
    _add_from_middle(view)
    view.add_argument("-o", dest="output", metavar="FILE", required=True)
    view.add_argument(
        "--json", action="store_true", help="an object that names both files"
    )
    view.set_defaults(run=_view)

    bench = commands.add_parser(
        "bench",
        help="the pool of JAX's default device beside malloc or cuMemAlloc",
        description="How long a pair of allocation and free takes on this machine "
        "from the pool of JAX's default device, and from malloc or, on CUDA, "
        "cuMemAlloc, in turns. ratio: how many times longer without the pool.",
    )
    bench.add_argument(
        "--rounds", type=_rounds, default=100, help="2 or more (default: 100)"
    )
    bench.add_argument("--json", action="store_true", help="a list of objects")
    bench.set_defaults(run=_bench)
    return parser


def _add_from_middle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from-middle",
        action="store_true",
        help="pass over frees of what the trace does not allocate, as in a log that "
        "begins in the middle of its program",
    )


def _add_trace_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="of a recording, such as cuda:0; default: each by itself",
    )
    _add_from_middle(parser)


def _rounds(text: str) -> int:
    if not (text.isdecimal() and 2 <= int(text[:8]) <= 1_000_000):
        raise argparse.ArgumentTypeError(f"{text!r}; valid: 2 to 1000000")
    return int(text)


def _replay(options: argparse.Namespace) -> str:
    return _offline.replay(
        options.traces,
        options.policy or _POLICIES,
        device=options.device,
        from_middle=options.from_middle,
        as_json=options.json,
    )


def _plan(options: argparse.Namespace) -> str:
    return _offline.plan(
        options.trace,
        device=options.device,
        from_middle=options.from_middle,
        as_json=options.json,
    )


def _view(options: argparse.Namespace) -> str:
    files = importlib.import_module("jax_bfc._views._files")
    try:
        with progress(f"drawing {os.path.basename(options.source)}"):
            files.view(options.source, options.output, from_middle=options.from_middle)
    except files.ViewError as error:
        raise _Error(str(error)) from error
    if options.json:
        return json.dumps({"source": options.source, "output": options.output})
    return f"wrote {options.output}"


def _info(options: argparse.Namespace) -> str:
    # Here, because replay must not wait for a backend.
    module = importlib.import_module("jax_bfc._info")
    try:
        values = module.info()
    except ValueError as error:  # a platform that is not served
        raise _Error(str(error)) from error
    except RuntimeError as error:
        raise _Error(
            f"JAX has no usable backend: {str(error).splitlines()[0]}"
        ) from error
    text: str = json.dumps(values, indent=2) if options.json else module.as_text(values)
    return text


def _bench(options: argparse.Namespace) -> str:
    module = importlib.import_module("jax_bfc._bench")
    try:
        rows = module.bench(rounds=options.rounds)
    except (RuntimeError, ValueError) as error:
        raise _Error(str(error).removeprefix("jax_bfc: ")) from error
    if options.json:
        return json.dumps(rows, indent=2)
    first = rows[0]
    header = ("workload", "ns/pair", "p99", f"{first['peer']} ns", "p99", "ratio")
    table = [
        (
            row["workload"],
            f"{row['pool_ns']:,.1f}",
            f"{row['pool_p99_ns']:,.1f}",
            f"{row['peer_ns']:,.1f}",
            f"{row['peer_p99_ns']:,.1f}",
            f"{row['ratio']:,.1f}",
        )
        for row in rows
    ]
    notes = [f"{row['workload']}: {row['what']}" for row in rows]
    title = f"{first['device']}, {options.rounds} rounds"
    return "\n".join([title, "", align([header, *table]), "", *notes])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status."""
    try:
        options = _parser().parse_args(arguments)
        text = options.run(options)
    except _Help as help:
        text = str(help).rstrip()
    except (_Error, _trace.TraceError) as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        return _refuse("interrupted")
    if sys.stdout is None:
        return _refuse("standard output is closed")
    try:
        # What the terminal cannot show is escaped, as on stderr.
        encoding = sys.stdout.encoding or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has left, as `| head` does
        _discard(sys.stdout)
        return 1
    except OSError as error:
        _discard(sys.stdout)
        return _refuse(f"standard output cannot be written: {error.strerror or error}")
    return 0


def _refuse(reason: str) -> int:
    """Says why in a line, if anybody listens."""
    if sys.stderr is not None:
        try:
            print(f"jax_bfc: {' '.join(reason.split())}", file=sys.stderr, flush=True)
        except OSError:
            _discard(sys.stderr)
    return 2


def _discard(stream: TextIO) -> None:
    """What is still buffered goes nowhere, or the interpreter would complain of it at
    exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _fill_standard_descriptors() -> None:
    """Or a file that is opened gets the number of one that is closed, and whatever
    writes to that, such as a library's log, would write into the file."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


if __name__ == "__main__":
    _fill_standard_descriptors()
    # At once, also from inside the core, which looks for no signals. What writes a
    # file takes its unfinished one away first.
    if sys.argv[1:2] != ["view"]:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(main())
