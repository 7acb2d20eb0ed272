"""The peak of a block of code, and who held it."""

from types import TracebackType
from typing import Any

from jax_bfc import _core
from jax_bfc._devices import index_or_default

__all__ = ["Peak", "peak"]


class Peak:
    """What :func:`peak` gives: final after its block, so far inside it."""

    def __init__(self, device: Any) -> None:
        self._device = device
        self._open: _core.PeakBlock | None = None
        self._last: tuple[int, dict[str, int]] | None = None

    def __enter__(self) -> "Peak":
        if self._open is not None:
            raise RuntimeError(
                "jax_bfc.peak: this block is open already; call peak() once for each "
                "with"
            )
        # An interrupt before the store drops the only reference, and so ends it.
        self._open = _core.open_peak(index_or_default(self._device))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._open is not None:
            self._last = self._open.read()
            self._open.close()
            self._open = None

    def _read(self) -> tuple[int, dict[str, int]]:
        if self._open is not None:
            return self._open.read()
        if self._last is None:
            raise RuntimeError(
                "jax_bfc.peak: this block was never entered, so it has no figures; "
                "use `with jax_bfc.peak() as p:`"
            )
        return self._last

    @property
    def bytes(self) -> int:
        """The most bytes in use at once, in whole chunks."""
        return self._read()[0]

    @property
    def by_kernel(self) -> dict[str, int]:
        """Who held how many of them, most first; the sum is :attr:`bytes`."""
        rows = self._read()[1].items()
        return dict(sorted(rows, key=lambda row: (-row[1], row[0])))

    def __repr__(self) -> str:
        if self._open is None and self._last is None:
            return "Peak(never entered)"
        held, by_kernel = self.bytes, self.by_kernel
        return f"Peak(bytes={held}, by_kernel={by_kernel})"


def peak(device: Any = None) -> Peak:
    """Measures the most scratch in use at once inside a ``with`` block::

        with jax_bfc.peak() as p:
            train_step(...).block_until_ready()
        print(p.bytes, p.by_kernel)

    Starts from what is in use when the block begins. Both figures are of one
    moment, and exact whatever the number of threads, unlike
    ``peak_bytes_in_use``: while a block is open, each allocation and free of the
    device is added up under one lock. Blocks nest and overlap in any order, on
    any threads, and neither change :func:`jax_bfc.reset_peak_memory_stats` and
    the peaks of the statistics nor are changed by them. Work that is submitted
    inside and runs after the block is not in it.

    Args:
        device: a ``jax.Device``, or None for the default one.

    Returns:
        A context manager with ``.bytes`` and ``.by_kernel`` (a dict from the names
        that :func:`jax_bfc.kernel_stats` has to bytes, most first).

    Raises:
        TypeError: entering, ``device`` is no ``jax.Device``.
        ValueError: entering, a device that this version does not serve.
        RuntimeError: entering a block that is open, or where CUDA cannot be used;
            reading the figures of a block that was never entered.

    Cost: tens of nanoseconds for each allocation and free while a block is open,
    and more where several threads meet; nothing otherwise.
    """
    return Peak(device)
