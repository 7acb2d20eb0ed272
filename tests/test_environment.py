"""What the environment configures, and what importing does."""

import textwrap

import pytest
from pools import output_of, run_cli, run_python

from jax_bfc import _core

SHOW = """
    import jax_bfc
    c = jax_bfc.get_config()
    print(c.memory_fraction, c.limit_bytes, c.preallocate, c.source)
"""


def test_the_default_is_four_fifths_of_the_host() -> None:
    limit = int(_core.host_total_bytes() * 0.8)
    assert output_of(SHOW) == "0.8 None False auto"  # no backend is started
    started = "import jax; jax.devices()\n" + textwrap.dedent(SHOW)
    assert output_of(started) == f"0.8 {limit} False auto"


def test_the_environment_beats_the_default() -> None:
    env = {
        "JAX_BFC_LIMIT_BYTES": "1GiB",
        "JAX_BFC_PREALLOCATE": "true",
        "JAX_BFC_SOURCE": "host",
    }
    assert output_of(SHOW, env=env) == f"None {1 << 30} True host"
    fraction = output_of(SHOW, env={"JAX_BFC_MEMORY_FRACTION": "0.5"})
    assert fraction.startswith("0.5 ")


def test_an_argument_beats_the_environment() -> None:
    code = """
        import jax_bfc
        jax_bfc.configure(memory_fraction=0.5, preallocate=False)
        c = jax_bfc.get_config()
        print(c.memory_fraction, c.preallocate)
    """
    env = {"JAX_BFC_LIMIT_BYTES": "1GiB", "JAX_BFC_PREALLOCATE": "1"}
    assert output_of(code, env=env) == "0.5 False"


@pytest.mark.parametrize(
    ("env", "text"),
    [
        ({"JAX_BFC_MEMORY_FRACTION": "most"}, "JAX_BFC_MEMORY_FRACTION='most'; valid"),
        ({"JAX_BFC_MEMORY_FRACTION": "2"}, "JAX_BFC_MEMORY_FRACTION='2'; valid"),
        ({"JAX_BFC_MEMORY_FRACTION": "nan"}, "JAX_BFC_MEMORY_FRACTION='nan'; valid"),
        (
            {"JAX_BFC_LIMIT_BYTES": "4 parsecs"},
            "JAX_BFC_LIMIT_BYTES='4 parsecs'; valid",
        ),
        ({"JAX_BFC_PREALLOCATE": "maybe"}, "JAX_BFC_PREALLOCATE='maybe'; valid: 1"),
        ({"JAX_BFC_SOURCE": "disk"}, "JAX_BFC_SOURCE='disk'; valid"),
        (
            {"JAX_BFC_MEMORY_FRACTION": "0.5", "JAX_BFC_LIMIT_BYTES": "1GiB"},
            "JAX_BFC_LIMIT_BYTES='1GiB' exclude each other",
        ),
    ],
)
def test_a_bad_environment_variable_is_named(env: dict[str, str], text: str) -> None:
    done = run_python("import jax_bfc", env=env)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: ")
    assert text in last
    for command in (["--help"], ["replay", "no_such_file"]):
        done = run_cli(*command, env=env)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line == last.replace("ValueError", "jax_bfc", 1)


def test_an_empty_environment_variable_is_as_if_not_set() -> None:
    names = ("MEMORY_FRACTION", "LIMIT_BYTES", "PREALLOCATE", "SOURCE")
    empty = {f"JAX_BFC_{name}": "" for name in names}
    assert output_of(SHOW, env=empty) == "0.8 None False auto"
    given = empty | {"JAX_BFC_LIMIT_BYTES": "1gib"}
    assert output_of(SHOW, env=given) == f"None {1 << 30} False auto"


def test_a_misspelt_environment_variable_is_warned_about() -> None:
    done = run_python(SHOW, env={"JAX_BFC_LIMIT": "1GiB", "JAX_BFC_GPU_OUT": "1"})
    assert done.stdout.strip() == "0.8 None False auto"
    text = "JAX_BFC_LIMIT is set, but is no variable of jax_bfc; valid: "
    assert text + "JAX_BFC_MEMORY_FRACTION, JAX_BFC_LIMIT_BYTES" in done.stderr
    assert "JAX_BFC_GPU_OUT is set" not in done.stderr


def test_importing_and_configuring_start_no_backend() -> None:
    code = """
        import jax_bfc
        from jax._src import xla_bridge
        assert not xla_bridge._backends
        jax_bfc.configure(limit_bytes="1GiB", preallocate=True)
        jax_bfc.get_config()
        jax_bfc.trim()
        jax_bfc.reset()
        jax_bfc.reset_peak_memory_stats()
        jax_bfc.include_dir(), jax_bfc.cmake_dir()
        assert not xla_bridge._backends
        jax_bfc.memory_stats()
        print(sorted(xla_bridge._backends))
    """
    assert output_of(code) == "['cpu']"
