"""Runs the C++ tests with sanitizers, the random ones with one seed."""

import shutil
from pathlib import Path

import cpp_programs
import pytest

_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "second_deadlock_stack=1",
}


@pytest.fixture(scope="module", params=["address,undefined", "thread"])
def sanitized(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> cpp_programs.Build:
    sanitize: str = request.param
    _skip_where_it_does_not_run(sanitize, tmp_path_factory.mktemp("probe"))
    name = "cpp_" + sanitize.replace(",", "_")
    return cpp_programs.Build(request.config.cache.mkdir(name), sanitize)


def _skip_where_it_does_not_run(sanitize: str, folder: Path) -> None:
    compiler = shutil.which("c++")
    assert compiler is not None, "no C++ compiler"
    source = folder / "probe.cc"
    source.write_text("int main() {}\n", encoding="utf-8")
    program = str(folder / "probe")
    command = [compiler, f"-fsanitize={sanitize}", str(source), "-o", program]
    status, output = cpp_programs.run(command, timeout=60)
    if status != 0:
        pytest.skip(f"{compiler} does not link -fsanitize={sanitize}: {output}")
    status, output = cpp_programs.run([program], timeout=60)
    if status != 0:
        pytest.skip(f"-fsanitize={sanitize} does not run here: {output}")


@pytest.mark.parametrize("program", cpp_programs.test_names())
def test_no_report(sanitized: cpp_programs.Build, program: str) -> None:
    path = sanitized.program(program)
    command = [str(path), "--seed", "1"]
    status, output = cpp_programs.run(command, timeout=600, env=_OPTIONS)
    assert status == 0, output
