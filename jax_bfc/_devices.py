"""From a ``jax.Device`` to the pool that serves it."""

import atexit
import contextlib
import functools
import os
import re
import sys
import threading
from typing import Any

from jax_bfc import _core

# As platforms are called in jax.Device.platform, and where their pools start.
_FIRST_POOL = {"cpu": 0, "gpu": _core.MAX_HOST_POOLS, "cuda": _core.MAX_HOST_POOLS}


@functools.cache
def _jax() -> Any:
    """JAX, imported only here: most commands need none of it, and are quicker."""
    import jax

    return jax


def is_cuda(index: int) -> bool:
    """Whether the pool with this index is that of a CUDA device."""
    return index >= _core.MAX_HOST_POOLS


def cuda_ordinal(index: int) -> int:
    """The ordinal of the CUDA device of the pool with this index."""
    return index - _core.MAX_HOST_POOLS


def _named(name: str) -> int | None:
    """The pool of the device with this name, as ``print_summary()`` has it; None
    for text that is no such name. Starts no backend: before, every name is good."""
    match = re.fullmatch(r"(cpu|gpu|cuda):(0|[1-9][0-9]{0,4})", name)
    if match is None:
        return None
    index = _FIRST_POOL[match[1]] + int(match[2])
    if started := _started_platforms():
        platform = "cpu" if match[1] == "cpu" else "cuda"
        devices = _jax().local_devices(backend=platform) if platform in started else ()
        if index not in (known := {index_of(device) for device in devices}):
            names = ", ".join(f"'{platform}:{i - min(known)}'" for i in sorted(known))
            raise ValueError(f"device={name!r}; valid: {names or 'another platform'}")
    return index


def index_of(device: Any) -> int:
    """The index of the pool of a local CPU or CUDA device, or of one by its name.

    Raises:
        TypeError: not a ``jax.Device``.
        ValueError: a device of another platform, or of another process, or a name
            that no local device has.
    """
    if isinstance(device, str) and (index := _named(device)) is not None:
        return index
    if not isinstance(device, _jax().Device):
        raise TypeError(
            f"device={device!r} is a {type(device).__name__}; valid: a jax.Device "
            "such as jax.devices()[0], a name such as 'cpu:0', or None"
        )
    if device.platform not in _FIRST_POOL or "rocm" in device.client.platform_version:
        raise ValueError(
            f"device={device} is of platform {device.platform!r}; this version "
            "serves: 'cpu', and 'gpu' with CUDA"
        )
    this_process = device.client.process_index()
    if device.process_index != this_process:
        raise ValueError(
            f"device={device} belongs to process {device.process_index}; valid: "
            f"the local devices of process {this_process}"
        )
    first = _FIRST_POOL[device.platform]
    count = (_core.MAX_POOLS if first else _core.MAX_HOST_POOLS) - first
    ordinal = int(device.local_hardware_id)
    if ordinal >= count:
        raise ValueError(f"device={device} is number {ordinal}; valid: below {count}")
    return first + ordinal


_default_at_exit: int | None = None
# Held while JAX is asked for the default device, so that exit waits for it.
_asking = threading.RLock()


def _renew_lock() -> None:
    """In a forked child: another thread of the parent's may have had it."""
    global _asking
    _asking = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


@atexit.register
def _keep_default() -> None:
    """JAX drops its backends at exit, after this has run; a daemon thread that goes on
    would make it start them anew while the interpreter ends, which can abort."""
    global _default_at_exit
    # Or there is none that we serve.
    with _asking, contextlib.suppress(ValueError, RuntimeError):
        _default_at_exit = started_default()


def index_or_default(device: Any) -> int:
    """The same, where ``None`` is JAX's default device (starts its backend)."""
    if device is None:
        with _asking:
            if _default_at_exit is not None:
                return _default_at_exit
            jax = _jax()
            device = jax.config.jax_default_device or jax.local_devices()[0]
            if isinstance(device, str):  # jax_default_device may name a platform
                device = jax.local_devices(backend=device)[0]
    elif isinstance(device, str):
        _jax().local_devices()  # starts them, so that the name can be looked up
    return index_of(device)


def index_or_all(device: Any) -> int | None:
    """The same, where ``None`` is every device."""
    return None if device is None else index_of(device)


def _started_platforms() -> list[str]:
    """The platforms whose backends JAX has started.

    JAX has no public function that answers without starting one; where its
    private one is gone, the answer is none.
    """
    bridge: Any = sys.modules.get("jax._src.xla_bridge")
    return list(getattr(bridge, "_backends", {}))


def started_cuda_devices() -> list[int]:
    """The pools of the local CUDA devices, if JAX has started their backend."""
    if "cuda" not in _started_platforms():
        return []
    return [index_of(device) for device in _jax().local_devices(backend="cuda")]


def started_default() -> int | None:
    """The pool of JAX's default device, if JAX has started its backends."""
    return index_or_default(None) if _started_platforms() else None
