"""Fixtures that several test files use."""

import pathlib
import sys

import pytest
from cpp_programs import Build


def pytest_configure() -> None:
    """`python -m pytest` puts the current folder first, and in the repository that
    hides the installed package behind its sources."""
    root = pathlib.Path(__file__).parent.parent.resolve()
    sys.path[:] = [p for p in sys.path if pathlib.Path(p).resolve() != root]


@pytest.fixture(scope="session")
def cpp_build(request: pytest.FixtureRequest) -> Build:
    """The C++ tests; kept between sessions in pytest's cache folder."""
    return Build(request.config.cache.mkdir("cpp"))
