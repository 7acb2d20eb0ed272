"""The colours of kernels and of what no kernel holds, for all views."""

import colorsys
import itertools
from typing import Final

# The first ones are after Paul Tol's bright and muted schemes, which the
# colour-blind can tell apart.
_FIRST: Final = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#332288",
    "#ddcc77",
    "#117733",
    "#88ccee",
    "#882255",
    "#999933",
)
STATES: Final = {"cached": "#c9c9c9", "waiting": "#e3b6b6", "free": "#f1f1f1"}


def _other(i: int) -> str:
    """Hues a golden angle apart, none of them grey as what is cached is."""
    lightness = (0.45, 0.6, 0.35)[i % 3]
    rgb = colorsys.hls_to_rgb((i * 0.381966) % 1, lightness, 0.6)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def colours(number: int) -> list[str]:
    """So many, each with a hue of its own."""
    others = map(_other, itertools.count())
    return list(itertools.islice(itertools.chain(_FIRST, others), number))
