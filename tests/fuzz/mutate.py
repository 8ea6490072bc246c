"""Inputs out of a corpus by seeded chance, for machines without a coverage-guided engine."""

import random
from collections.abc import Sequence
from typing import Final

CHANGES_LIMIT: Final = 6
INTERESTING: Final = (b"\0", b"\1", b"\x7f", b"\x80", b"\xff", b"\xff\xff\xff\xff", b"\0\0\0\x80")


class Mutator:
    """The same seed and corpus give the same inputs."""

    def __init__(
        self, corpus: Sequence[bytes], words: Sequence[bytes], max_bytes: int, seed: int
    ) -> None:
        self._corpus = list(corpus) or [b""]
        self._words = [*words, *INTERESTING]
        self._max_bytes = max_bytes
        self._draw = random.Random(seed)

    def next(self) -> bytes:
        """One of the corpus with up to CHANGES_LIMIT changes."""
        draw = self._draw
        data = bytearray(draw.choice(self._corpus))
        for _ in range(draw.randint(1, CHANGES_LIMIT)):
            self._change(data)
        return bytes(data[: self._max_bytes])

    def _change(self, data: bytearray) -> None:
        draw = self._draw
        at = draw.randrange(len(data) + 1)
        kind = draw.randrange(8)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = draw.randrange(256)
        elif kind == 2:
            data[at:at] = draw.choice(self._words)
        elif kind == 3:
            del data[at : at + draw.randint(1, 8)]
        elif kind == 4:
            other = draw.choice(self._corpus)
            begin = draw.randrange(len(other) + 1)
            data[at : at + draw.randrange(16)] = other[begin : begin + draw.randint(1, 64)]
        elif kind == 5:
            data[at:at] = data[at : at + draw.randint(1, 32)]
        elif kind == 6 and at < len(data):
            data[at] = (data[at] + draw.choice((-1, 1))) & 0xFF
        else:
            data[at:at] = draw.randbytes(draw.randint(1, 4))
