"""Text that every machine has: the source of Python's standard library."""

import sysconfig
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


def corpus(max_bytes: int = 2 << 20) -> Bytes:
    """The first max_bytes of the library's modules in alphabetical order."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    text = b""
    for path in sorted(folder.glob("*.py")):
        text += path.read_bytes()
        if len(text) >= max_bytes:
            break
    if len(text) < 1 << 16:
        raise FileNotFoundError(
            f"{folder} holds {len(text):,} bytes of Python source, too few to train "
            "on: this Python has no standard library in source form."
        )
    return np.frombuffer(text[:max_bytes], np.uint8)


class Batches:
    """Random pieces of a text, one byte longer than the sequence: inputs and labels."""

    def __init__(self, text: Bytes, batch: int, time: int, seed: int = 0) -> None:
        self._text, self._batch, self._time = text, batch, time
        self._random = np.random.default_rng(seed)

    def next(self) -> NDArray[np.int32]:
        """[batch, time + 1] int32."""
        starts = self._random.integers(0, len(self._text) - self._time - 1, self._batch)
        index = starts[:, None] + np.arange(self._time + 1)
        batch: NDArray[np.int32] = self._text[index].astype(np.int32)
        return batch
