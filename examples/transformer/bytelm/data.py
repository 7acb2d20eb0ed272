"""Text that every machine has: the source of Python's standard library."""

import re
import sysconfig
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Tokens = Bytes | NDArray[np.int32]


# Folders of what is installed beside the library, and of tables of characters.
NO_TEXT = {"site-packages", "dist-packages", "encodings"}


def corpus(max_bytes: int = 2 << 20, packages: bool = False) -> Bytes:
    """The first max_bytes of the library's modules in alphabetical order, and of
    its packages where asked for."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(folder.glob("*.py"))
    if packages:
        paths += sorted(
            path for path in folder.glob("*/**/*.py") if not NO_TEXT & set(path.parts)
        )
    text = b""
    for path in paths:
        text += path.read_bytes()
        if len(text) >= max_bytes:
            break
    if len(text) < 1 << 16:
        raise FileNotFoundError(
            f"{folder} holds {len(text):,} bytes of Python source, too few to train "
            "on: this Python has no standard library in source form."
        )
    return np.frombuffer(text[:max_bytes], np.uint8)


class ByteTable:
    """A token for each byte."""

    name = "byte"
    size = 256

    def encode(self, text: bytes) -> Tokens:
        return np.frombuffer(text, np.uint8)

    def decode(self, tokens: list[int]) -> bytes:
        return bytes(tokens)


class WordTable:
    """A token for each of a text's most frequent words, with the space before it,
    and for each byte, of which the other words are made."""

    name = "word"
    PIECES = re.compile(rb" ?\w+|\n *| ?[^\w\s]+|.", re.DOTALL)

    def __init__(self, text: bytes, size: int = 32_000) -> None:
        count = Counter(piece for piece in self.PIECES.findall(text) if len(piece) > 1)
        # Of equally frequent words the first in the alphabet, on every machine.
        words = sorted(count, key=lambda word: (-count[word], word))
        self.words = [bytes([i]) for i in range(256)] + words[: size - 256]
        self.size = size  # where a text has fewer words, no token is the last ones
        self._number = {word: i for i, word in enumerate(self.words)}

    def encode(self, text: bytes) -> Tokens:
        tokens: list[int] = []
        for piece in self.PIECES.findall(text):
            token = self._number.get(piece)
            if token is None:
                tokens.extend(piece)
            else:
                tokens.append(token)
        return np.array(tokens, np.int32)

    def decode(self, tokens: list[int]) -> bytes:
        unknown = b"?"
        return b"".join(
            self.words[token] if token < len(self.words) else unknown
            for token in tokens
        )


Table = ByteTable | WordTable


class Batches:
    """Random pieces of a text, a token longer than the sequence: inputs and labels."""

    def __init__(self, text: Tokens, batch: int, time: int, seed: int = 0) -> None:
        self._text, self._batch, self._time = text, batch, time
        self._random = np.random.default_rng(seed)

    def next(self) -> NDArray[np.int32]:
        """[batch, time + 1] int32."""
        starts = self._random.integers(0, len(self._text) - self._time - 1, self._batch)
        index = starts[:, None] + np.arange(self._time + 1)
        batch: NDArray[np.int32] = self._text[index].astype(np.int32)
        return batch
