"""``python -m jax_bfc``: replay and plan traces, draw snapshots and recordings,
show what is in force, and measure it.

Exit status: 0; 2 and one line on stderr for input that makes no sense.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from jax_bfc import _core, _trace
from jax_bfc._progress import progress
from jax_bfc._summary import align

_POLICIES: Final = _core.policies()


class _Error(Exception):
    """Bad input; the text is the line for stderr."""


class _Parser(argparse.ArgumentParser):
    """Reports a bad command line in one line."""

    def error(self, message: str) -> NoReturn:
        raise _Error(f"{message}; see {self.prog} --help")


_TRACES: Final = (
    "which are CSV with the columns op,id,bytes,stream or RMM's log, gzip if the name "
    "ends in .gz."
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
        "--json", action="store_true", help="an object, bytes as integers"
    )
    plan.set_defaults(run=_plan)

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


def _rounds(text: str) -> int:
    if not (text.isdecimal() and 2 <= int(text[:8]) <= 1_000_000):
        raise argparse.ArgumentTypeError(f"{text!r}; valid: 2 to 1000000")
    return int(text)


def _read(path: str) -> _trace.Trace:
    with progress(f"reading {os.path.basename(path)}"):
        return _trace.read_trace(path)


def _replay_one(trace: _trace.Trace, policy: str) -> dict[str, Any]:
    try:
        with progress(f"replaying {os.path.basename(trace.path)}: {policy}"):
            result = _core.replay(trace.is_allocate, trace.ids, trace.bytes, policy)
    except ValueError as error:
        raise _Error(f"{trace.path}: {error}") from error
    return {"trace": trace.path, "policy": policy, **result}


def _replay(options: argparse.Namespace) -> str:
    policies = dict.fromkeys(options.policy or _POLICIES)
    # All are read before the first is replayed: a bad one is known at once.
    traces = [_read(path) for path in options.traces]
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
        "internal",
        "external",
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
            _mib(row["mapped_bytes"]),
            _mib(row["internal_fragmentation_bytes"]),
            f"{row['external_fragmentation']:.3f}",
            f"{row['ns_per_event']:.1f}",
        )
        for row in rows
    ]
    return align([header, *table], text_columns=2)


def _plan(options: argparse.Namespace) -> str:
    trace = _read(options.trace)
    start = time.perf_counter()
    try:
        with progress(f"planning {os.path.basename(trace.path)}"):
            plan = _core.plan(trace.is_allocate, trace.ids, trace.bytes)
    except ValueError as error:
        raise _Error(f"{trace.path}: {error}") from error
    del plan["offsets"]
    seconds = time.perf_counter() - start
    peak = plan["peak_live_bytes"]

    def ratio(size: int) -> float:
        return size / peak if peak else 0.0

    line = f"jax_bfc.configure(limit_bytes={plan['limit_bytes']})"
    if options.json:
        row = {
            "trace": trace.path,
            "events": len(trace),
            **plan,
            "planned_ratio": ratio(plan["planned_bytes"]),
            "ratio": ratio(plan["high_water_bytes"]),
            "seconds": seconds,
            "configure": line,
        }
        return json.dumps(row, indent=2)
    sizes = (
        ("peak live, which no pool is below", peak),
        ("placed offline, lifetimes known", plan["planned_bytes"]),
        ("placed by the arena: high water", plan["high_water_bytes"]),
        ("limit that the arena serves it in", plan["limit_bytes"]),
    )
    rows = [("", "bytes", "", "of peak live")]
    rows += [(name, f"{n:,}", _mib(n), f"{ratio(n):.4f}") for name, n in sizes]
    return (
        f"{os.path.basename(trace.path)}: {len(trace):,} events, "
        f"{plan['allocations']:,} allocations, planned in {seconds:.1f} s\n\n"
        f"{align(rows)}\n\n{line}"
    )


def _view(options: argparse.Namespace) -> str:
    files = importlib.import_module("jax_bfc._views._files")
    try:
        with progress(f"drawing {os.path.basename(options.source)}"):
            files.view(options.source, options.output)
    except files.ViewError as error:
        raise _Error(str(error)) from error
    if options.json:
        return json.dumps({"source": options.source, "output": options.output})
    return f"wrote {options.output}"


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MiB"


def _info(options: argparse.Namespace) -> str:
    # Here, because replay must not wait for a backend.
    module = importlib.import_module("jax_bfc._info")
    try:
        values = module.info()
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
    # At once, also from inside the core, which looks for no signals.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(main())
