"""Builds and runs the C++ tests of tests/cpp."""

import dataclasses
import functools
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

SOURCES = Path(__file__).parent / "cpp"
_TEST = re.compile(r"^TEST\((\w+)\)", re.MULTILINE)

# Tools of the test extra, also where the environment is not activated.
_PATH = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])


def test_names() -> dict[str, list[str]]:
    """The tests of each program, as its source has them."""
    return {
        source.stem: _TEST.findall(source.read_text(encoding="utf-8"))
        for source in sorted(SOURCES.glob("*_test.cc"))
    }


def run(
    command: list[str], *, timeout: float, env: dict[str, str] | None = None
) -> tuple[int, str]:
    """The exit status and output of a command; 124 if it took too long."""
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
            env={**os.environ, "PATH": _PATH, **(env or {})},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        text = output if isinstance(output, str) else output.decode(errors="replace")
        return 124, f"{text}\ntook more than {timeout:g} s: {' '.join(command)}"
    return done.returncode, done.stdout


@dataclasses.dataclass(frozen=True)
class Build:
    """One build of all programs.

    Attributes:
        folder: of the build; what is there is built on.
        sanitize: "none", "thread" or "address,undefined".
    """

    folder: Path
    sanitize: str = "none"

    def program(self, name: str) -> Path:
        """The program, built. A failure gives the compiler's output."""
        self._start()
        status, output = self._build(name)
        assert status == 0, output
        return self.folder / name

    def _build(self, target: str, *options: str) -> tuple[int, str]:
        command = ["cmake", "--build", str(self.folder), "--target", target, "-j2"]
        return run([*command, "--", *options], timeout=900)

    @functools.cache  # noqa: B019 (a build lives as long as the session)
    def _start(self) -> None:
        ninja = shutil.which("ninja", path=_PATH)
        assert ninja is not None, "no ninja; pip install '.[test]' brings it"
        status, output = run(
            [
                "cmake",
                "-GNinja",
                f"-DCMAKE_MAKE_PROGRAM={ninja}",
                f"-DJAX_BFC_SANITIZE={self.sanitize}",
                f"-S{SOURCES}",
                f"-B{self.folder}",
            ],
            timeout=120,
        )
        assert status == 0, output
        # All that builds, at once; program() says what does not.
        self._build("all", "-k0")
