"""What speaks for another dialect than the one that a line is read in. Reference "mctp", 4.2, 13.3.

A damaged frame, or noise, has the right sum of another dialect once in 32,768 times (there are
two other sums of 16 bits), so one such frame proves nothing. Evidence is a run:

    of another sum   frames that are right in the same other dialect, one right after another: a
                     good frame, a bad frame or garbage between them ends the run. Two of them by
                     chance: once in 2^31 times that two damaged frames follow each other
    B for C, or C    frames that only the other of the two can have sent (their FCS holds 7D or
    for B            7E: one frame in 64). All other frames are the same in both and say nothing,
                     so only a frame that the present one alone can have sent ends the run

How many are enough is for `Adopt` to say: it also knows the time, and who is at the other end.
"""

from collections.abc import Callable
from typing import Final, TypeAlias

from protocol.mctp.serial_frame import Dialect

# Asked at each frame of a run but its first: (the other dialect, frames in the run). True: from
# this frame on the line is read in that dialect.
Adopt: TypeAlias = Callable[[Dialect, int], bool]

LATCH_FRAMES: Final = 2  # the least that is more than chance; each one more costs a lost frame
COMPLEMENTED: Final = (Dialect.B, Dialect.C)


class DialectEvidence:
    """The runs of one line, as the frames come. It keeps two of them, each a number."""

    def __init__(self) -> None:
        self._fits: tuple[Dialect, ...] = ()  # in which all frames of the run are right
        self._frames = 0
        self._specific = 0  # frames of the other one of B and C

    def own(self, fits: tuple[Dialect, ...]) -> None:
        """A good frame of the present dialect came. Need not be told of those that fit B and C."""
        if len(fits) == 1:
            self._specific = 0

    def other(
        self, present: Dialect, fits: tuple[Dialect, ...], *, follows: bool
    ) -> tuple[Dialect, int]:
        """A frame that is right in others only: what it speaks for, and the length of that run.

        `follows`: the frame before was one of these too, and there was nothing between the two.
        """
        if present in COMPLEMENTED and fits[0] in COMPLEMENTED:
            self._specific += 1
            return fits[0], self._specific
        both = tuple(dialect for dialect in self._fits if dialect in fits) if follows else ()
        self._fits, self._frames = (both, self._frames + 1) if both else (fits, 1)
        return self._fits[0], self._frames
