"""Runs each C++ test of tests/cpp as a test of its own."""

import cpp_programs
import pytest

_NAMES = cpp_programs.test_names()


@pytest.mark.parametrize(
    ("program", "name"),
    [
        pytest.param(program, name, id=f"{program}-{name}")
        for program, names in _NAMES.items()
        for name in names
    ],
)
def test_cpp(cpp_build: cpp_programs.Build, program: str, name: str) -> None:
    path = cpp_build.program(program)
    status, output = cpp_programs.run([str(path), name], timeout=300)
    assert status == 0, output


@pytest.mark.parametrize("program", _NAMES)
def test_every_test_of_the_program_is_run(
    cpp_build: cpp_programs.Build, program: str
) -> None:
    path = cpp_build.program(program)
    status, output = cpp_programs.run([str(path), "--list"], timeout=10)
    assert status == 0, output
    assert output.split() == _NAMES[program]
