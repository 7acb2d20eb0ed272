"""What the pools hold, and giving it back."""

import dataclasses
import logging
from typing import Any

from jax_bfc import _core
from jax_bfc._devices import index_or_all, index_or_default
from jax_bfc._summary import text_of_bytes

_log = logging.getLogger("jax_bfc")


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelStats:
    """The scratch of one kernel (an FFI target, or a label of one) on a device.

    Sizes in bytes. ``bytes_in_use`` and its peak count whole chunks, the others
    what was asked for.

    Attributes:
        calls: handler calls that asked for scratch.
        num_allocs: allocations that succeeded.
        bytes_in_use: now.
        peak_bytes_in_use: at most at once, since the last reset.
        total_allocated_bytes: ever.
        largest_alloc_size: in one allocation, since the last reset.
        pinned_bytes: of ``bytes_in_use``, held by CUDA graphs until their executable
            is gone (none on CPU).
        num_failures: requests that did not fit.
        call_sites: custom calls in executables that exist, on all devices.
    """

    calls: int
    num_allocs: int
    bytes_in_use: int
    peak_bytes_in_use: int
    total_allocated_bytes: int
    largest_alloc_size: int
    pinned_bytes: int
    num_failures: int
    call_sites: int

    def __str__(self) -> str:
        """A line for each figure, as `print` shows it."""
        figures = dataclasses.asdict(self)
        return "\n".join(
            f"{name:21} {value:>15,}"
            + (
                f" ({text_of_bytes(value)})"
                if "bytes" in name or "size" in name
                else ""
            )
            for name, value in figures.items()
        )


def memory_stats(device: Any = None) -> dict[str, int]:
    """The statistics of a device's pool, as ``jax.Device.memory_stats`` has them.

    Args:
        device: a ``jax.Device``, or None for the default one.

    Returns:
        With the keys and meanings of JAX: ``num_allocs``, ``bytes_in_use`` (whole
        chunks), ``peak_bytes_in_use``, ``largest_alloc_size``, ``bytes_limit``,
        ``bytes_reserved`` and ``peak_bytes_reserved`` (0: nothing is set aside),
        ``largest_free_block_bytes``, ``pool_bytes`` (mapped), ``peak_pool_bytes``.
        And of our own: ``pinned_bytes`` (of what is in use, held by CUDA graphs until
        their executable is gone), ``pinned_for_life_bytes`` (of those, by graphs of
        handlers without a call site), ``requested_bytes`` (of what is in use),
        ``cached_bytes`` (freed, but in front caches, or waiting until the device is
        done with it: neither in use nor free), ``free_bytes``,
        ``address_bytes`` (addresses reserved), ``total_allocated_bytes``,
        ``num_live``, ``num_cache_hits``, ``num_failures``, ``num_growths``,
        ``num_trims``. Always ``bytes_in_use + cached_bytes + free_bytes ==
        pool_bytes`` while no other thread allocates.

        A peak is exact while one thread allocates, else within 1/256 of the limit
        (at least 1 MiB) for each thread.

    Cost: microseconds; locks each thread's slot for a moment.
    """
    return _core.memory_stats(index_or_default(device))


def kernel_stats(device: Any = None) -> dict[str, KernelStats]:
    """The same by kernel: FFI targets by name, labels as "<target>:<label>".

    ``(unregistered)`` are handlers that ``jax.ffi.register_ffi_target``
    registered, ``(python)`` is :func:`jax_bfc.scratch`.

    Args:
        device: a ``jax.Device``, or None for the default one.
    """
    rows = _core.kernel_stats(index_or_default(device))
    return {name: KernelStats(**row) for name, row in rows.items()}


def reset_peak_memory_stats(device: Any = None) -> None:
    """Starts peaks and largest sizes anew from what is in use now.

    Args:
        device: a ``jax.Device``, or None for all.
    """
    _core.reset_peaks(index_or_all(device))


def trim(device: Any = None) -> int:
    """Gives every step of memory that is wholly free back to the system.

    Args:
        device: a ``jax.Device``, or None for all.

    Returns:
        The bytes given back.
    """
    given_back = _core.trim(index_or_all(device))
    _log.info("trim() gave back %d bytes", given_back)
    return given_back


def reset(device: Any = None) -> None:
    """Drops the pools: their memory and their statistics, not the configuration.

    Args:
        device: a ``jax.Device``, or None for all.

    Raises:
        RuntimeError: scratch is in use. Nothing has changed then.
    """
    refusal = _core.reset(index_or_all(device))
    if refusal is not None:
        raise RuntimeError(refusal)
    _log.info("reset() dropped the pools of %s", device or "all devices")


def last_oom_report(device: Any = None) -> str | None:
    """What was said when scratch last did not fit; None if it always did.

    Args:
        device: a ``jax.Device``, or None for the default one.
    """
    return _core.last_oom_report(index_or_default(device))
