"""How much of what a pool maps is resident in memory."""

import sys

import pytest
from pools import MIB, output_of

RESIDENT = """
import resource
from jax_bfc import _core

def resident():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * resource.getpagesize()

_core.memory_stats(0)
before = resident()
s = _core.allocate(0, 1000, 256)
print(_core.memory_stats(0)["pool_bytes"], resident() - before)
"""


def test_preallocating_maps_and_touches_the_limit_at_the_first_use() -> None:
    env = {"JAX_BFC_PREALLOCATE": "1", "JAX_BFC_LIMIT_BYTES": "48MiB"}
    mapped, grown = map(int, output_of(RESIDENT, env=env).split())
    assert mapped == 48 * MIB
    assert 46 * MIB <= grown <= 56 * MIB


def test_without_preallocating_only_what_is_used_becomes_resident() -> None:
    env = {"JAX_BFC_LIMIT_BYTES": "48MiB"}
    mapped, grown = map(int, output_of(RESIDENT, env=env).split())
    assert mapped == 2 * MIB
    assert grown <= 4 * MIB


@pytest.mark.skipif(sys.maxsize < 2**32, reason="addresses of 64 bits")
def test_a_limit_larger_than_memory_costs_no_memory() -> None:
    env = {"JAX_BFC_LIMIT_BYTES": "1TiB"}
    mapped, grown = map(int, output_of(RESIDENT, env=env).split())
    assert mapped == 2 * MIB
    assert grown <= 4 * MIB
