"""Configuration: arguments beat the environment, the environment the default."""

import dataclasses
import math
import numbers
import os
import re
import threading
import warnings
from typing import Any

from jax_bfc import _core
from jax_bfc._devices import (
    cuda_ordinal,
    index_or_all,
    index_or_default,
    is_cuda,
    started_cuda_devices,
    started_default,
)

_CPU_SOURCES = ("auto", "host")
_CUDA_SOURCES = ("auto", "cuda_vmm", "cuda")
_ALL_SOURCES = ("auto", "host", "cuda_vmm", "cuda")
_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS[f"{_letter}iB"] = 1024**_power
    _UNITS[f"{_letter}B"] = 1000**_power


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What is in force for a device. Sizes in bytes.

    Attributes:
        memory_fraction: of the device's total memory; None where ``limit_bytes``
            was given outright.
        limit_bytes: what the pool may map; None where it depends on a device
            that is not known yet.
        initial_bytes: the first step of growth.
        growth_factor: from one step to the next.
        max_growth_bytes: the largest step that the policy takes by itself; a
            larger request still gets what it needs.
        preallocate: map and touch the whole limit when the pool is made.
        source: where memory comes from.
        huge_pages: of the host source, for steps of 2 MiB and more.
    """

    memory_fraction: float | None = 0.8
    limit_bytes: int | None = None
    initial_bytes: int = 2 << 20
    growth_factor: float = 2.0
    max_growth_bytes: int = 1 << 30
    preallocate: bool = False
    source: str = "auto"
    huge_pages: bool | str = "auto"


def bytes_of(name: str, value: Any) -> int:
    """A size: an integer, or text such as "4GiB"."""
    valid = 'valid: a positive int, or text such as "4GiB", "512MiB", "1.5GB"'
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d{1,20}(?:\.\d{1,20})?)\s*([KMGT]?i?B?)\s*", value)
        if match is None or match[2] not in _UNITS:
            raise ValueError(f"{name}={value!r}; {valid}")
        value = int(float(match[1]) * _UNITS[match[2]])
    elif isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; {valid}")
    size = int(value)
    if not 0 < size <= _core.MAX_REQUEST:
        raise ValueError(f"{name}={size}; {valid}, at most {_core.MAX_REQUEST}")
    return size


def _real(name: str, value: Any, valid: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; valid: {valid}")
    return float(value)


def _fraction(name: str, value: Any) -> float:
    valid = "a number in (0, 1]"
    fraction = _real(name, value, valid)
    if not 0 < fraction <= 1:  # NaN too
        raise ValueError(f"{name}={value!r}; valid: {valid}")
    return fraction


def _factor(name: str, value: Any) -> float:
    valid = "a finite number of at least 1"
    factor = _real(name, value, valid)
    if not (factor >= 1 and math.isfinite(factor)):
        raise ValueError(f"{name}={value!r}; valid: {valid}")
    return factor


def _one_of(name: str, value: Any, valid: tuple[Any, ...]) -> Any:
    for choice in valid:
        if type(value) is type(choice) and value == choice:
            return choice
    raise ValueError(f"{name}={value!r}; valid: {', '.join(map(repr, valid))}")


def _source(name: str, value: Any) -> str:
    source: str = _one_of(name, value, _ALL_SOURCES)
    if source.startswith("cuda") and (why := _core.why_no_cuda()) is not None:
        raise ValueError(f"{name}={value!r}, but {why}; valid here: 'auto', 'host'")
    return source


def _huge_pages(name: str, value: Any) -> bool | str:
    choice: bool | str = _one_of(name, value, ("auto", True, False))
    if choice is True and not _core.huge_pages_allowed():
        raise ValueError(
            f"{name}=True, but this kernel gives no transparent huge pages "
            "(/sys/kernel/mm/transparent_hugepage/enabled); valid here: 'auto', False"
        )
    return choice


def _flag(name: str, value: Any) -> bool:
    flag: bool = _one_of(name, value, (True, False))
    return flag


_CHECKS = {
    "memory_fraction": _fraction,
    "limit_bytes": bytes_of,
    "initial_bytes": bytes_of,
    "growth_factor": _factor,
    "max_growth_bytes": bytes_of,
    "preallocate": _flag,
    "source": _source,
    "huge_pages": _huge_pages,
}

_lock = threading.Lock()
# A forked child would wait for ever for a lock that another thread had held.
os.register_at_fork(
    before=_lock.acquire,
    after_in_parent=_lock.release,
    after_in_child=_lock.release,
)
_default = Config()
_overrides: dict[int, Config] = {}  # by index of the pool


def _replace(config: Config, changes: dict[str, Any]) -> Config:
    """`config` with `changes`, checked; a fraction and a limit exclude another."""
    changes = {name: value for name, value in changes.items() if value is not None}
    if "memory_fraction" in changes and "limit_bytes" in changes:
        raise ValueError(
            f"memory_fraction={changes['memory_fraction']!r} and limit_bytes="
            f"{changes['limit_bytes']!r} exclude each other; valid: one of them"
        )
    changes = {name: _CHECKS[name](name, value) for name, value in changes.items()}
    if "memory_fraction" in changes:
        changes["limit_bytes"] = None  # it depends on the device
    elif "limit_bytes" in changes:
        changes["memory_fraction"] = None
    return dataclasses.replace(config, **changes)


def _apply(index: int | None, config: Config) -> None:
    refusal = _core.configure(
        index,
        memory_fraction=config.memory_fraction,
        limit_bytes=config.limit_bytes or 1,
        initial_bytes=config.initial_bytes,
        growth_factor=config.growth_factor,
        max_growth_bytes=config.max_growth_bytes,
        preallocate=config.preallocate,
        huge_pages=None if config.huge_pages == "auto" else bool(config.huge_pages),
        source=config.source,
    )
    if refusal is not None:
        raise ValueError(refusal)


def _for_device(index: int, config: Config) -> Config:
    """`config` as it is in force for the pool with this index."""
    sources = _CUDA_SOURCES if is_cuda(index) else _CPU_SOURCES
    return dataclasses.replace(
        config,
        limit_bytes=_core.limit_bytes(index),
        source=config.source if config.source in sources else "auto",
    )


def _warn_if_short(index: int) -> None:
    """Says so where what JAX and others left free is less than the limit."""
    free, total, mapped = _core.cuda_memory(cuda_ordinal(index))
    limit = _core.limit_bytes(index)
    if limit <= free + mapped:
        return
    mib = 1 << 20
    warnings.warn(
        f"jax_bfc: cuda:{cuda_ordinal(index)} may take {limit // mib:,} MiB of "
        f"scratch, but only {free // mib:,} of its {total // mib:,} MiB are free "
        f"(and {mapped // mib:,} are mapped already): scratch ends there. JAX takes "
        "75 % of the card when it starts. Start with a lower "
        "XLA_CLIENT_MEM_FRACTION (or XLA_PYTHON_CLIENT_PREALLOCATE=false), or "
        "give a smaller memory_fraction or limit_bytes here.",
        stacklevel=3,
    )


def configure(
    *,
    memory_fraction: float | None = None,
    limit_bytes: int | str | None = None,
    initial_bytes: int | str | None = None,
    growth_factor: float | None = None,
    max_growth_bytes: int | str | None = None,
    preallocate: bool | None = None,
    source: str | None = None,
    huge_pages: bool | str | None = None,
    device: Any = None,
) -> None:
    """Sets how much memory scratch may take, and how the pools grow.

    May be called at any time. Before the first use it decides; later it changes
    limits and growth, and gives memory back where the new limit asks for it.
    What is left out keeps its value. Starts no JAX backend.

    Args:
        memory_fraction: the limit as a part of the device's total memory, in
            (0, 1]. On CPU that is the machine's, or its control group's where
            that is less, in one budget that the local CPU devices share. On CUDA
            it is the card's, as in JAX, of which JAX itself takes 75 % at its
            start: a warning says so where the limit cannot be met.
        limit_bytes: the limit outright, in bytes or as text ("4GiB"); excludes
            ``memory_fraction``.
        initial_bytes: the first step of growth (default 2 MiB).
        growth_factor: how much larger each step is than the last (default 2).
        max_growth_bytes: the largest step (default 1 GiB).
        preallocate: map and touch the whole limit when the pool is made. For
            pools that have been used already it does nothing.
        source: "auto"; "host" for CPU devices; "cuda_vmm" (virtual memory, what
            "auto" takes where the card has it) or "cuda" (plain blocks) for CUDA
            devices. Devices of another kind go on with "auto". Cannot change
            while scratch is in use.
        huge_pages: "auto" (where the kernel allows them, for steps of 2 MiB and
            more), True, or False; for steps to come.
        device: one ``jax.Device``, or None for all local ones. The limit of one
            CPU device is its own, within the budget that all share.

    Raises:
        ValueError: a value that is not valid, or a limit below what scratch in
            use keeps mapped. Nothing has changed then.
        TypeError: a value of the wrong type.
    """
    global _default
    changes = {
        "memory_fraction": memory_fraction,
        "limit_bytes": limit_bytes,
        "initial_bytes": initial_bytes,
        "growth_factor": growth_factor,
        "max_growth_bytes": max_growth_bytes,
        "preallocate": preallocate,
        "source": source,
        "huge_pages": huge_pages,
    }
    index = index_or_all(device)
    with _lock:
        config = _replace(
            _default if index is None else _overrides.get(index, _default), changes
        )
        if index is not None and source is not None:
            _one_of("source", source, _CUDA_SOURCES if is_cuda(index) else _CPU_SOURCES)
        _apply(index, config)
        if index is None:
            _default = config
            _overrides.clear()
        else:
            _overrides[index] = config
    if memory_fraction is not None or limit_bytes is not None:
        for cuda in started_cuda_devices() if index is None else [index]:
            if is_cuda(cuda):
                _warn_if_short(cuda)


def get_config(device: Any = None) -> Config:
    """What is in force for a device; ``None``: for the default one.

    Starts no backend: for ``None`` before one exists, ``limit_bytes`` is None
    where it depends on the device. For a CUDA device it is what was configured;
    what its pool got of it is ``memory_stats(device)["bytes_limit"]``.

    Raises:
        TypeError: ``device`` is no ``jax.Device``.
        ValueError: a device that this version does not serve.
        RuntimeError: a CUDA device that the driver does not know.
    """
    index = started_default() if device is None else index_or_default(device)
    with _lock:
        if index is None:
            return _default
        return _for_device(index, _overrides.get(index, _default))


def _from_environment() -> dict[str, Any]:
    """The changes that JAX_BFC_* variables ask for."""
    changes: dict[str, Any] = {}
    if (text := os.environ.get("JAX_BFC_MEMORY_FRACTION")) is not None:
        try:
            changes["memory_fraction"] = float(text)
        except ValueError:
            raise ValueError(
                f"JAX_BFC_MEMORY_FRACTION={text!r}; valid: a number in (0, 1]"
            ) from None
    if (text := os.environ.get("JAX_BFC_LIMIT_BYTES")) is not None:
        changes["limit_bytes"] = text
    if (text := os.environ.get("JAX_BFC_PREALLOCATE")) is not None:
        flags = {"1": True, "true": True, "0": False, "false": False}
        if text.lower() not in flags:
            raise ValueError(f"JAX_BFC_PREALLOCATE={text!r}; valid: {', '.join(flags)}")
        changes["preallocate"] = flags[text.lower()]
    if (text := os.environ.get("JAX_BFC_SOURCE")) is not None:
        changes["source"] = text
    return changes


def _start() -> None:
    global _default
    changes = _from_environment()
    if "memory_fraction" not in changes and "limit_bytes" not in changes:
        changes["memory_fraction"] = _default.memory_fraction
    try:
        _default = _replace(_default, changes)
    except ValueError as error:
        raise ValueError(f"in a JAX_BFC_* environment variable: {error}") from None
    _apply(None, _default)


_start()
