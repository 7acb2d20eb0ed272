"""What is in force: versions, the driver, devices, configuration, statistics."""

import dataclasses
import importlib.metadata
import platform
from typing import Any, Final

import jax

from jax_bfc import _core
from jax_bfc._config import get_config
from jax_bfc._stats import memory_stats

_STATISTICS: Final = "  statistics of this process, which has just started"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def info() -> dict[str, Any]:
    """All of it, as plain values. Starts JAX's backends.

    Raises:
        RuntimeError: JAX has no usable backend.
    """
    packages = ("jax_bfc", "jax", "jaxlib", "numpy")
    return {
        "versions": {
            **{name: _version(name) for name in packages},
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "cuda_driver": _core.cuda_driver_version()
            or f"none: {_core.why_no_cuda()}",
        },
        "devices": [
            {
                "device": f"{device.platform}:{device.id}",
                "kind": device.device_kind,
                "config": dataclasses.asdict(get_config(device)),
                "statistics": memory_stats(device),
            }
            for device in jax.local_devices()
        ],
    }


def _section(title: str, values: dict[str, Any]) -> list[str]:
    width = max(map(len, values))
    return [
        title,
        *(f"  {key.ljust(width)}  {_show(value)}" for key, value in values.items()),
    ]


def _show(value: object) -> str:
    return f"{value:,}" if type(value) is int else str(value)


def as_text(values: dict[str, Any]) -> str:
    """What :func:`info` gives, for people."""
    lines = _section("versions", values["versions"])
    for device in values["devices"]:
        lines += [
            "",
            *_section(f"{device['device']} {device['kind']}", device["config"]),
        ]
        lines += ["", *_section(_STATISTICS, device["statistics"])]
    return "\n".join(lines)
