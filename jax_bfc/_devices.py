"""From a ``jax.Device`` to the pool that serves it."""

from typing import Any

import jax

from jax_bfc import _core


def ordinal_of(device: Any) -> int:
    """The ordinal of a CPU device, as its kernels are given it.

    Raises:
        TypeError: not a ``jax.Device``.
        ValueError: a device of another platform, or of another process.
    """
    if not isinstance(device, jax.Device):
        raise TypeError(
            f"device={device!r} is a {type(device).__name__}; valid: a jax.Device "
            "such as jax.devices()[0], or None"
        )
    if device.platform != "cpu":
        raise ValueError(
            f"device={device} is of platform {device.platform!r}; this version "
            "serves: 'cpu'"
        )
    if device.process_index != jax.process_index():
        raise ValueError(
            f"device={device} belongs to process {device.process_index}; valid: "
            f"the local devices of process {jax.process_index()}"
        )
    ordinal = int(device.local_hardware_id)
    if ordinal >= _core.MAX_HOST_POOLS:
        raise ValueError(
            f"device={device} is number {ordinal}; valid: below {_core.MAX_HOST_POOLS}"
        )
    return ordinal


def ordinal_or_default(device: Any) -> int:
    """The same, where ``None`` is JAX's default device (starts its backend)."""
    if device is None:
        config: Any = jax.config  # its options are not in its type
        device = config.jax_default_device or jax.local_devices()[0]
        if isinstance(device, str):  # jax_default_device may name a platform
            device = jax.local_devices(backend=device)[0]
    return ordinal_of(device)


def ordinal_or_all(device: Any) -> int | None:
    """The same, where ``None`` is every device."""
    return None if device is None else ordinal_of(device)
