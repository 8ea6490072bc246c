"""Which serial dialect a link is read and spoken in (protocol/SPEC.md 1.1; reference "mctp" 4.2).

Both ends begin in A and may find the other speaking B, C or D. Were both to go after what they
hear, they could change places for ever. So one end leads, the card's, and the other follows:

    follows   LATCH_FRAMES frames in a row of another dialect, and it reads and speaks that one.
              What it hears is the card's, so whatever the card settles on, it comes along
    leads     the same on a line on which nothing was understood yet. Later it also waits until
              it has understood nothing for HOLD_NS. In that time a module that follows has heard
              what the card sends (a request is repeated each 500 ms, a scan asks each 250 ms) and
              has come along; one that has not is fixed, or is asked nothing, and then doesn't move

Between B and C, which differ in one frame of 64, an end that leads needs twice as many frames at
each change of mind, one that follows always LATCH_FRAMES.

A module that only answers would never be found by a card that speaks only A. So while an end that
leads has heard nothing, not on this line or not for STALE_NS, each frame of a message of one packet
is followed by the same packet in another dialect, in turn; whoever hears both takes one of them.
(A frame of C is one of B, but for one in 64.) Both go out as one write, and the present dialect
stands between any two others: a module that follows is not led astray when some of them are lost.
"""

from collections.abc import Callable
from typing import Final

from firmware.fields import Fields
from firmware.loop import MS
from protocol.mctp.serial import SerialDeframer
from protocol.mctp.serial_dialect import COMPLEMENTED, LATCH_FRAMES
from protocol.mctp.serial_frame import Dialect, Framer, framer

HOLD_NS: Final = 2_000 * MS  # four attempts of a request; below the lease
STALE_NS: Final = 10_000 * MS  # longer than a lease and its fence: nobody is there, or another
ADAPTS: Final = "adapts"
_PROBES: Final = (Dialect.A, Dialect.B, Dialect.D)


def dialect_of(fields: Fields) -> Dialect | None:
    """The key `dialect` of a module's description: A to D, or "adapts" (also when absent): None.

    Raises FieldError.
    """
    word = fields.choice("dialect", (ADAPTS, *(dialect.value for dialect in Dialect)), ADAPTS)
    return None if word == ADAPTS else Dialect(word)


class LinkDialect:
    """The dialect of one link over all its lines: a line that is opened again is the same peer's,
    as far as anybody knows."""

    def __init__(
        self,
        now_ns: Callable[[], int],
        understood_ns: Callable[[], int | None],
        changed: Callable[[Dialect, Dialect], None],
        *,
        leads: bool,
        fixed: Dialect | None,
    ) -> None:
        """`understood_ns()` is when a frame was last taken on the line that is open, None for
        never. `changed(old, new)` is told, from within `SerialDeframer.feed`. `fixed`: this
        dialect for ever, whatever is heard."""
        self._now_ns = now_ns
        self._understood_ns = understood_ns
        self._changed = changed
        self._leads = leads
        self._fixed = fixed is not None
        self._splits = 0  # changes of mind between B and C on the line that is open
        self._probes = 0
        self.current = fixed or Dialect.A
        self.frame: Framer = framer(self.current)
        self.heard_ns: int | None = None  # a frame of another dialect

    def deframer(self) -> SerialDeframer:
        """For a line that was just opened."""
        self._splits = 0
        return SerialDeframer(dialect=self.current, adopt=None if self._fixed else self._adopt)

    def probe(self, packet: bytes) -> bytes:
        """What follows the frame of a packet to a peer that has not been heard; maybe nothing."""
        if self._fixed:
            return b""
        self._probes += 1
        others = [
            dialect
            for dialect in _PROBES
            if dialect is not self.current
            and not (dialect in COMPLEMENTED and self.current in COMPLEMENTED)
        ]
        return framer(others[self._probes % len(others)])(packet)

    def _adopt(self, dialect: Dialect, frames: int) -> bool:
        now_ns = self.heard_ns = self._now_ns()
        split = dialect in COMPLEMENTED and self.current in COMPLEMENTED
        if self._leads and split:
            if frames < LATCH_FRAMES << self._splits:
                return False
            self._splits += 1
        elif self._leads:
            understood_ns = self._understood_ns()
            if understood_ns is not None and now_ns - understood_ns < HOLD_NS:
                return False
        old, self.current = self.current, dialect
        self.frame = framer(dialect)
        self._changed(old, dialect)
        return True
