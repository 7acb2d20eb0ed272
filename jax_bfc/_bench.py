"""The pool beside what handlers do without one, on this machine."""

import statistics
from typing import Any, Final

from jax_bfc import _core
from jax_bfc._devices import index_or_default, is_cuda
from jax_bfc._progress import progress

# By name: what one pair of allocation and free is, pairs in a sample on the host,
# and on a CUDA device, where the system's own take microseconds; 0: not there.
WORKLOADS: Final = {
    "one_size": ("1 MiB, taken and given back", 2000, 20),
    "four_live": ("64 KiB, 1, 4 and 16 MiB, given back in reverse", 500, 5),
    "churn": ("a random one of 256 live, of 256 B to 1 MiB, is replaced", 2000, 20),
    "touch": ("64 MiB, a byte of each page of 4 KiB is written", 1, 0),
}


def bench(*, rounds: int) -> list[dict[str, Any]]:
    """A row for each workload on JAX's default device, which is started.

    Both sides take turns, in changing order. Times are ns a pair: each sample is the
    mean over some pairs, and there is one sample of each side a round.

    Args:
        rounds: 2 or more.

    Raises:
        RuntimeError: the pool or the system has not enough memory, the report says
            why; or JAX has no usable backend.
        ValueError: the default device is of a platform that is not served.
    """
    index = index_or_default(None)
    cuda = is_cuda(index)
    rows = []
    chosen = {
        name: (text, on_cuda if cuda else on_host)
        for name, (text, on_host, on_cuda) in WORKLOADS.items()
    }
    chosen = {name: row for name, row in chosen.items() if row[1]}
    with progress("measuring", total=len(chosen) * (rounds + 1)) as step:
        for name, (text, pairs) in chosen.items():
            samples: dict[bool, list[float]] = {True: [], False: []}
            for i in range(rounds + 1):
                for ours in (True, False) if i % 2 else (False, True):
                    samples[ours].append(_core.bench(index, name, ours, pairs))
                step()
            pool, system = samples[True][1:], samples[False][1:]  # warm
            rows.append(
                {
                    "device": dict(_core.pools())[index],
                    "workload": name,
                    "what": text,
                    "pool_ns": statistics.median(pool),
                    "pool_p99_ns": _p99(pool),
                    "peer": "cuMemAlloc" if cuda else "malloc",
                    "peer_ns": statistics.median(system),
                    "peer_p99_ns": _p99(system),
                    "ratio": statistics.median(
                        b / a for a, b in zip(pool, system, strict=True)
                    ),
                }
            )
    return rows


def _p99(samples: list[float]) -> float:
    return sorted(samples)[min(len(samples) - 1, len(samples) * 99 // 100)]
