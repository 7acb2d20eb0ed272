"""Errors."""

import functools


class OutOfMemoryError(MemoryError):
    """Scratch that does not fit, from :func:`jax_bfc.scratch`.

    The pool goes on: smaller requests may succeed.

    Attributes:
        requested: bytes asked for.
        limit: bytes that the pool may map.
        in_use: bytes handed out at that moment.
        largest_free: bytes of the largest free chunk.
        report: the whole report, as :func:`jax_bfc.last_oom_report` has it.
    """

    def __init__(
        self, *, requested: int, limit: int, in_use: int, largest_free: int, report: str
    ) -> None:
        super().__init__(report)
        self.requested = requested
        self.limit = limit
        self.in_use = in_use
        self.largest_free = largest_free
        self.report = report

    def __reduce__(self) -> tuple[object, ...]:
        """So that it comes whole out of a worker process, and out of a copy."""
        make = functools.partial(
            type(self),
            requested=self.requested,
            limit=self.limit,
            in_use=self.in_use,
            largest_free=self.largest_free,
            report=self.report,
        )
        return make, (), self.__dict__
