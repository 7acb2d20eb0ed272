"""What jax_bfc sets itself to reach, and whether this run did."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import _peers
from _measure import First, Row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
    """`measured` is to be at most `limit`, or at least."""

    name: str
    limit: float
    measured: float
    unit: str  # "ns", "us", "KiB" or "x"
    at_least: bool = False

    @property
    def met(self) -> bool:
        if self.at_least:
            return self.measured >= self.limit
        return self.measured <= self.limit

    @property
    def limit_text(self) -> str:
        kind = "at least" if self.at_least else "at most"
        return f"{kind} {self.limit:g} {self.unit}"

    @property
    def measured_text(self) -> str:
        return (
            f"{self.measured:,.2f} {self.unit}"
            if self.unit == "x"
            else f"{self.measured:,.1f} {self.unit}"
        )

    def as_json(self) -> dict[str, object]:
        """All of it, and whether it is met, for a file."""
        return {
            "name": self.name,
            "limit": self.limit,
            "at_least": self.at_least,
            "measured": self.measured,
            "unit": self.unit,
            "met": self.met,
        }


def bars(rows: Iterable[Row], firsts: Sequence[First]) -> list[Bar]:
    """Those for which there are figures: not a ratio to a peer that is not here."""
    by_key = {
        (row.side, row.case.workload, row.case.n, row.case.threads): row for row in rows
    }
    result: list[Bar] = []

    def time(name: str, limit_ns: float, side: str, workload: str, n: int = 0) -> None:
        row = by_key.get((side, workload, n, 1))
        if row is not None:
            result.append(Bar(name=name, limit=limit_ns, measured=row.ns, unit="ns"))

    def ratio(
        name: str,
        limit: float,
        of: tuple[str, str, int, int],
        to: tuple[str, str, int, int],
    ) -> None:
        if of in by_key and to in by_key:
            result.append(
                Bar(
                    name=name,
                    limit=limit,
                    measured=by_key[of].over(by_key[to]),
                    unit="x",
                )
            )

    time("LIFO pair, pool", 25, _peers.POOL, "lifo")
    ratio(
        "churn, pool over TensorFlow's",
        0.9,
        (_peers.POOL, "churn", 0, 1),
        (_peers.TENSORFLOW, "churn", 0, 1),
    )
    for side, workload, what in (
        (_peers.POOL, "free_chunks", "pool"),
        (_peers.POOL, "free_chunks_varied", "pool, cache missed"),
        (_peers.ARENA, "free_chunks", "arena alone"),
    ):
        time(f"100,000 free chunks, {what}", 200, side, workload, 100_000)
        ratio(
            f"100,000 free chunks over 1,000, {what}",
            1.5,
            (side, workload, 100_000, 1),
            (side, workload, 1_000, 1),
        )
    for workload in ("same_size", "lifo"):
        ratio(
            f"two threads on one pool over one, {workload}",
            1.3,
            (_peers.POOL, workload, 0, 2),
            (_peers.POOL, workload, 0, 1),
        )
    for first in firsts:
        if first.side == _peers.POOL:
            result.append(
                Bar(
                    name="first allocation in 64 GiB",
                    limit=1000,
                    measured=first.ns / 1e3,
                    unit="us",
                )
            )
            result.append(
                Bar(
                    name="host memory it takes",
                    limit=1024,
                    measured=first.host_bytes / 1024,
                    unit="KiB",
                )
            )
    return result
