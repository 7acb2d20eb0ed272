"""Fixtures that several test files use."""

import pytest
from cpp_programs import Build


@pytest.fixture(scope="session")
def cpp_build(request: pytest.FixtureRequest) -> Build:
    """The C++ tests; kept between sessions in pytest's cache folder."""
    return Build(request.config.cache.mkdir("cpp"))
