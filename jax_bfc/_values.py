"""Values that configure() takes: each is checked by name."""

import math
import numbers
import re
from typing import Any

from jax_bfc import _core

CPU_SOURCES = ("auto", "host")
CUDA_SOURCES = ("auto", "cuda_vmm", "cuda")
_ALL_SOURCES = ("auto", "host", "cuda_vmm", "cuda")
_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS[f"{_letter}ib"] = 1024**_power
    _UNITS[f"{_letter}b"] = 1000**_power
_LEAST_LIMIT = 4096  # a page: no pool maps less


def bytes_of(name: str, value: Any) -> int:
    """A size: an integer, or text such as "4GiB"."""
    valid = 'valid: a positive int, or text such as "4GiB", "512MiB", "1.5GB"'
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d{1,20}(?:\.\d{1,20})?)\s*([A-Za-z]*)\s*", value)
        if match is None or match[2].lower() not in _UNITS:
            raise ValueError(f"{name}={value!r}; {valid}")
        value = int(float(match[1]) * _UNITS[match[2].lower()])
    elif isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; {valid}")
    size = int(value)
    if not 0 < size <= _core.MAX_REQUEST:
        raise ValueError(f"{name}={size}; {valid}, at most {_core.MAX_REQUEST}")
    return size


def _limit(name: str, value: Any) -> int:
    limit = bytes_of(name, value)
    if limit < _LEAST_LIMIT:
        raise ValueError(
            f"{name}={value!r}; valid: at least {_LEAST_LIMIT:,} bytes, a page, since "
            "memory is mapped by pages (of 2 MiB on CUDA)"
        )
    return limit


def _real(name: str, value: Any, valid: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; valid: {valid}")
    return float(value)


def fraction_of(name: str, value: Any) -> float:
    valid = "a number in (0, 1]"
    fraction = _real(name, value, valid)
    if not 0 < fraction <= 1:  # NaN too
        raise ValueError(f"{name}={value!r}; valid: {valid}")
    if fraction * _core.host_total_bytes() < _LEAST_LIMIT:
        raise ValueError(
            f"{name}={value!r}; valid: {valid} that gives at least "
            f"{_LEAST_LIMIT:,} bytes, a page"
        )
    return fraction


def _factor(name: str, value: Any) -> float:
    valid = "a finite number of at least 1"
    factor = _real(name, value, valid)
    if not (factor >= 1 and math.isfinite(factor)):
        raise ValueError(f"{name}={value!r}; valid: {valid}")
    return factor


def one_of(name: str, value: Any, valid: tuple[Any, ...]) -> Any:
    for choice in valid:
        if type(value) is type(choice) and value == choice:
            return choice
    raise ValueError(f"{name}={value!r}; valid: {', '.join(map(repr, valid))}")


def _source(name: str, value: Any) -> str:
    source: str = one_of(name, value, _ALL_SOURCES)
    if source.startswith("cuda") and (why := _core.why_no_cuda()) is not None:
        raise ValueError(f"{name}={value!r}, but {why}; valid here: 'auto', 'host'")
    return source


def _huge_pages(name: str, value: Any) -> bool | str:
    choice: bool | str = one_of(name, value, ("auto", True, False))
    if choice is True and not _core.huge_pages_allowed():
        raise ValueError(
            f"{name}=True, but this kernel gives no transparent huge pages "
            "(/sys/kernel/mm/transparent_hugepage/enabled); valid here: 'auto', False"
        )
    return choice


def _flag(name: str, value: Any) -> bool:
    flag: bool = one_of(name, value, (True, False))
    return flag


CHECKS = {
    "memory_fraction": fraction_of,
    "limit_bytes": _limit,
    "initial_bytes": bytes_of,
    "growth_factor": _factor,
    "max_growth_bytes": bytes_of,
    "preallocate": _flag,
    "source": _source,
    "huge_pages": _huge_pages,
}


def checked(changes: dict[str, Any]) -> dict[str, Any]:
    """The changes that are asked for; a fraction and a limit exclude another."""
    changes = {name: value for name, value in changes.items() if value is not None}
    if "memory_fraction" in changes and "limit_bytes" in changes:
        raise ValueError(
            f"memory_fraction={changes['memory_fraction']!r} and limit_bytes="
            f"{changes['limit_bytes']!r} exclude each other; valid: one of them"
        )
    changes = {name: CHECKS[name](name, value) for name, value in changes.items()}
    if "memory_fraction" in changes:
        changes["limit_bytes"] = None  # it depends on the device
    elif "limit_bytes" in changes:
        changes["memory_fraction"] = None
    return changes
