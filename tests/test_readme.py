"""README.md quotes files and shows programs: both must be what they say."""

import re
from pathlib import Path

import pytest
from pools import run_python

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

# A block that follows "`path`:" quotes that file.
QUOTED = re.findall(r"`([\w./]+)`:\n\n```\w+\n(.*?)```\n", README, re.DOTALL)
PROGRAMS = [
    block
    for block in re.findall(r"\n```python\n(.*?)```\n", README, re.DOTALL)
    if block not in [quoted for _, quoted in QUOTED]
]


def test_the_three_files_of_the_first_kernel_are_quoted() -> None:
    folder = "examples/row_softmax/"
    assert [path for path, _ in QUOTED] == [
        folder + name for name in ("kernel.cc", "CMakeLists.txt", "run.py")
    ]


@pytest.mark.parametrize(("path", "block"), QUOTED, ids=[path for path, _ in QUOTED])
def test_a_quoted_file_is_quoted_to_the_letter(path: str, block: str) -> None:
    assert block == (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_a_program_runs_as_it_stands(program: str) -> None:
    done = run_python(program)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_the_two_commands_are_there() -> None:
    assert (
        "\n    pip install '.[examples]' && python examples/transformer/benchmark.py\n"
        in README
    )
    assert "\n    pip install '.[test]' && pytest\n" in README


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/design.md"])
def test_links_lead_to_files(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target
