"""Configuration: arguments beat the environment, the environment the default."""

import contextlib
import dataclasses
import os
import sys
import threading
import warnings
from typing import Any

from jax_bfc import _core
from jax_bfc._command import is_command
from jax_bfc._devices import (
    cuda_ordinal,
    index_or_all,
    index_or_default,
    is_cuda,
    started_cuda_devices,
    started_default,
)
from jax_bfc._values import (
    CHECKS,
    CPU_SOURCES,
    CUDA_SOURCES,
    checked,
    fraction_of,
    one_of,
)

_ENVIRONMENT = {
    "JAX_BFC_MEMORY_FRACTION": "memory_fraction",
    "JAX_BFC_LIMIT_BYTES": "limit_bytes",
    "JAX_BFC_PREALLOCATE": "preallocate",
    "JAX_BFC_SOURCE": "source",
}


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


@dataclasses.dataclass(frozen=True)
class _State:
    """What was configured: never changed, but replaced as a whole by one store, so
    that it is read without a lock."""

    default: Config = Config()
    # By index of the pool, what was set for that device alone since it was last set
    # for all.
    overrides: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def of(self, index: int | None) -> Config:
        changes = {} if index is None else self.overrides.get(index, {})
        return dataclasses.replace(self.default, **changes)

    def changed(self, index: int | None, changes: dict[str, Any]) -> "_State":
        if index is not None:
            of_device = self.overrides.get(index, {}) | changes
            return _State(self.default, self.overrides | {index: of_device})
        kept = {
            i: {name: value for name, value in own.items() if name not in changes}
            for i, own in self.overrides.items()
        }
        return _State(
            dataclasses.replace(self.default, **changes),
            {i: own for i, own in kept.items() if own},
        )

    def apply(self, index: int | None) -> None:
        """Puts it in force for one device; for None, for all."""
        if index is not None:
            return _apply(index, self.of(index))
        _apply(None, self.default)  # for those with overrides too
        for i in self.overrides:
            _apply(i, self.of(i))


# Who configures holds it. Taken again by a signal handler on the same thread, and
# around a fork, as a child would wait for ever for what another thread had held.
_lock = threading.RLock()
os.register_at_fork(
    before=_lock.acquire,
    after_in_parent=_lock.release,
    after_in_child=_lock.release,
)
_state = _State()


def _change(index: int | None, changes: dict[str, Any]) -> None:
    """Puts checked changes in force, or raises and leaves all as it was."""
    global _state
    with _lock:
        while True:
            before = _state
            after = before.changed(index, changes)
            try:
                after.apply(index)
            except BaseException:  # an interrupt too
                with contextlib.suppress(ValueError):
                    _state.apply(index)
                raise
            # Else a signal handler has configured in between. No signal is looked
            # for between the test and the store.
            if _state is before:
                _state = after
                return


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


def _for_device(state: _State, index: int) -> Config:
    """What is in force of `state` for the pool with this index.

    Worked out from `state` alone: the native side may have the next one already,
    where a signal handler asks in the middle of configure().
    """
    config = state.of(index)
    sources: tuple[str, ...]
    if is_cuda(index):
        sources, total = CUDA_SOURCES, _core.cuda_memory(cuda_ordinal(index))[1]
        limit = _limit_of(config, total)
    else:
        sources, total = CPU_SOURCES, _core.host_total_bytes()
        limit = min(_limit_of(config, total), _limit_of(state.default, total))
    return dataclasses.replace(
        config,
        limit_bytes=limit,
        source=config.source if config.source in sources else "auto",
    )


def _limit_of(config: Config, total_bytes: int) -> int:
    if config.memory_fraction is None:
        return config.limit_bytes or 1
    return max(1, int(total_bytes * config.memory_fraction))


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
    What is left out keeps its value, and so does, where all devices are configured,
    what was set for one of them by another argument. Starts no JAX backend.

    Args:
        memory_fraction: the limit as a part of the device's total memory, in
            (0, 1]. On CPU that is the machine's, or its control group's where
            that is less, in one budget that the local CPU devices share. On CUDA
            it is the card's, as in JAX, of which JAX itself takes 75 % at its
            start: a warning says so where the limit cannot be met.
        limit_bytes: the limit outright, in bytes (4,096 at least) or as text
            ("4GiB", in capital or small letters); excludes ``memory_fraction``.
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
        device: one ``jax.Device`` or its name ("cpu:0", "cuda:1"), or None for all
            local ones. The limit of one CPU device is its own, within the budget
            that all share.

    Raises:
        ValueError: a value that is not valid, or a limit below what scratch in
            use keeps mapped. Nothing has changed then.
        TypeError: a value of the wrong type.
    """
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
    asked = checked(changes)
    if index is not None and source is not None:
        one_of("source", source, CUDA_SOURCES if is_cuda(index) else CPU_SOURCES)
    _change(index, asked)
    if memory_fraction is not None or limit_bytes is not None:
        for cuda in started_cuda_devices() if index is None else [index]:
            if is_cuda(cuda):
                _warn_if_short(cuda)


def get_config(device: Any = None) -> Config:
    """What is in force for a device; ``None``: for the default one.

    Starts no backend: for ``None`` before one exists, ``limit_bytes`` is None
    where it depends on the device.

    Raises:
        TypeError: ``device`` is no ``jax.Device``.
        ValueError: a device that this version does not serve.
        RuntimeError: a CUDA device that the driver does not know.
    """
    index = started_default() if device is None else index_or_default(device)
    state = _state
    return state.default if index is None else _for_device(state, index)


def _environment(variable: str, name: str, text: str) -> Any:
    """The value that a variable's text stands for, checked."""
    if name == "memory_fraction":
        try:
            return fraction_of(variable, float(text))
        except ValueError:
            raise ValueError(
                f"{variable}={text!r}; valid: a number in (0, 1]"
            ) from None
    if name == "preallocate":
        flags = {"1": True, "true": True, "0": False, "false": False}
        if text.lower() not in flags:
            raise ValueError(f"{variable}={text!r}; valid: {', '.join(flags)}")
        return flags[text.lower()]
    return CHECKS[name](variable, text)


def _from_environment() -> dict[str, Any]:
    """The changes that JAX_BFC_* variables ask for; an empty one asks for none."""
    texts = {v: text for v in _ENVIRONMENT if (text := os.environ.get(v, "").strip())}
    if {"JAX_BFC_MEMORY_FRACTION", "JAX_BFC_LIMIT_BYTES"} <= texts.keys():
        both = " and ".join(f"{v}={texts[v]!r}" for v in list(_ENVIRONMENT)[:2])
        raise ValueError(f"{both} exclude each other; valid: one of them")
    known = (*_ENVIRONMENT, "JAX_BFC_LIBCUDA")
    for variable in os.environ:
        if not variable.startswith("JAX_BFC_") or variable in known:
            continue
        if not variable.startswith(  # those of our own tests and benchmarks
            ("JAX_BFC_GPU_", "JAX_BFC_TEST_", "JAX_BFC_STRESS_", "JAX_BFC_BENCHMARK_")
        ):
            warnings.warn(
                f"{variable} is set, but is no variable of jax_bfc; valid: "
                f"{', '.join(known)}",
                stacklevel=2,
            )
    return {
        _ENVIRONMENT[variable]: _environment(variable, _ENVIRONMENT[variable], text)
        for variable, text in texts.items()
    }


def _start() -> None:
    changes = _from_environment()
    if "memory_fraction" not in changes and "limit_bytes" not in changes:
        changes["memory_fraction"] = _state.default.memory_fraction
    _change(None, checked(changes))


try:
    _start()
except ValueError as error:
    if not is_command():
        raise
    print(f"jax_bfc: {error}", file=sys.stderr)
    sys.exit(2)
