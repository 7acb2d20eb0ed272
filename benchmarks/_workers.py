"""Builds the workers and talks to them: see harness/worker.cc for the commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from _peers import Side

_HERE = Path(__file__).resolve().parent


def find_tool(name: str) -> str | None:
    """A program on the path, or beside the Python that runs this."""
    return shutil.which(name) or shutil.which(
        name, path=str(Path(sys.executable).parent)
    )


def build(*, folder: Path, definitions: dict[str, str], source: Path = _HERE) -> None:
    """Configures and builds `source`; shows what was said where that fails."""
    cmake = find_tool("cmake")
    if cmake is None:
        raise SystemExit("benchmarks: cmake was not found. pip install cmake ninja")
    configure = [
        cmake,
        "-S",
        str(source),
        "-B",
        str(folder),
        *(f"-D{key}={value}" for key, value in definitions.items()),
    ]
    ninja = find_tool("ninja")
    if ninja is not None:
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    for command in (
        configure,
        [cmake, "--build", str(folder), "--parallel", str(os.cpu_count() or 1)],
    ):
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            print(done.stdout, file=sys.stderr)
            raise SystemExit(f"benchmarks: the build failed: {' '.join(command)}")


class Worker:
    """One process with one allocator in it. Ends with the `with` block."""

    def __init__(self, side: Side, *, folder: Path, arena_bytes: int) -> None:
        self.side = side
        self._process = subprocess.Popen(
            [str(folder / side.worker), side.argument, str(arena_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                **side.environment,
                "TF_CPP_MIN_LOG_LEVEL": "3",
                "TF_ENABLE_ONEDNN_OPTS": "0",
            },
        )

    def ask(self, *words: object) -> dict[str, Any]:
        """Sends a command and waits for the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(" ".join(map(str, words)) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            assert self._process.stderr is not None
            said = self._process.stderr.read().strip()
            status = self._process.wait()
            command = " ".join(map(str, words))
            raise WorkerError(
                f"{self.side.label} ended with status {status} at '{command}': {said}"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


class WorkerError(RuntimeError):
    """A worker ended before its answer."""
