"""Packets out of a serial byte stream (DSP0253). Frames and dialects: `protocol.mctp.serial_frame`.

In all dialects but B the FCS may hold a raw 7E, and so may the count: therefore a frame is parsed
by its length, and a flag serves only to find the next one, from the byte after the opening flag of
a frame that failed. So a damaged frame costs itself and nothing else, but for the one chance in
65,536 that wrong bytes have a right FCS. Framing judges framing only: whether a packet is long
enough is for MCTP to say.

A line is read in one dialect. A frame that is right in another one is not taken: it is dropped,
counted by its name, and is evidence (`protocol.mctp.serial_dialect`).
"""

from collections import Counter
from collections.abc import Callable
from typing import Final, TypeAlias

from protocol.crc import FCS16_XOROUT_X25, fcs16_from
from protocol.mctp.serial_dialect import LATCH_FRAMES, Adopt, DialectEvidence
from protocol.mctp.serial_frame import (
    ESCAPE,
    FLAG,
    HEAD_BYTES,
    HEAD_FCS,
    HEAD_FCS_SEED0,
    MAX_PACKET_BYTES,
    REVISION,
    TAIL_BYTES,
    Dialect,
    Verdict,
    frame_serial,
    inspect_frame,
    unescape,
)

__all__ = ["MAX_FRAME_BYTES", "SerialDeframer", "frame_serial"]

# Count 255, every byte escaped, and so both of an FCS of dialect B. What is kept between two feeds
# is shorter than that, and two.
MAX_FRAME_BYTES: Final = HEAD_BYTES + 2 * MAX_PACKET_BYTES + TAIL_BYTES + 2


SHORTEST: Final = HEAD_BYTES + TAIL_BYTES - 1  # from the opening flag to the closing one
_FLAG: Final = bytes([FLAG])
_DROPPED: Final = {dialect: f"dialect_{dialect.value.lower()}" for dialect in Dialect}
_Usual: TypeAlias = Callable[[bytes, int, int], bytes]


class SerialDeframer:
    """A byte stream, in pieces of any size, to packets. Never raises on what comes.

    `drops` counts frames by the reasons of `inspect_frame` ("dialect_a" too, where another one is
    read), and "garbage": runs of bytes outside any frame. Bytes that follow a failed frame belong
    to it and are not counted again. A frame may share its closing flag with the next one's opening
    flag, and flags may repeat. Memory is bounded by `MAX_FRAME_BYTES` and two, beside what is fed.
    """

    def __init__(
        self,
        max_packet_bytes: int = MAX_PACKET_BYTES,
        *,
        dialect: Dialect = Dialect.A,
        adopt: Adopt | None = None,
    ) -> None:
        """`dialect` is what is read; without `adopt` for ever. `adopt` is not asked before a run
        has LATCH_FRAMES frames."""
        if not 1 <= max_packet_bytes <= MAX_PACKET_BYTES:
            raise ValueError(f"packets have 1..{MAX_PACKET_BYTES} bytes, not {max_packet_bytes}")
        self._max_packet_bytes = max_packet_bytes
        self._rest = b""  # from the flag under judgement on
        self._flag = False  # all that is kept is the closing flag of a good frame
        self._opening = True  # that flag can't be the closing one of a frame
        self._lost = False  # what is skipped now was counted already
        self._other = False  # the frame before was right in another dialect
        self._evidence = DialectEvidence()
        self._adopt = adopt
        self._dialect = dialect
        self._usual = _USUAL[dialect]
        self.drops: Counter[str] = Counter()

    @property
    def dialect(self) -> Dialect:
        """What the line is read in."""
        return self._dialect

    def feed(self, data: bytes) -> list[bytes]:
        """Take what came; the good packets that it completes, in order."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        packets: list[bytes] = []
        usual = self._usual
        size = len(data)
        at = 0
        if self._flag and size:
            if data[0] == FLAG:
                self._opening = True
            else:
                data = _FLAG + data  # it was shared: the closing flag opens the next frame
                size += 1
            self._flag = False
        while at < size:
            if data[at] != FLAG:
                self._skip_garbage()
                at = data.find(FLAG, at)
                if at < 0:
                    break
            if at + 1 < size and data[at + 1] == FLAG:
                self._opening = True
                at += 1
                continue
            closing = data.find(FLAG, at + HEAD_BYTES)
            if closing >= at + SHORTEST and data[at + 1] == REVISION:
                packet = usual(data, at, closing)
                if packet and len(packet) <= self._max_packet_bytes:
                    packets.append(packet)
                    self._opening = self._lost = self._other = False
                    at = closing
                    if at + 1 == size:
                        self._flag = True
                        break
                    continue
            verdict = inspect_frame(data, at, self._max_packet_bytes)
            if verdict is None:
                self._rest = data[at:]
                break
            if verdict.fits and verdict.packet:
                if self._takes(verdict):
                    packets.append(verdict.packet)
                    usual = self._usual
                self._opening = self._lost = False
                at = verdict.end - 1
                continue
            if verdict.reason == "bad_revision" and not self._opening:
                self._skip_garbage()  # it was a closing flag, or no flag at all
            else:
                own = self._dialect in verdict.fits  # then there is nothing in it
                self.drops["empty" if own else verdict.reason or "empty"] += 1
                self._lost = True
                self._other = False
            self._opening = False
            at += 1
        return packets

    def _takes(self, verdict: Verdict) -> bool:
        """Whether a frame that is right in some dialect is right in ours, perhaps from now on."""
        fits = verdict.fits
        if self._dialect in fits:
            self._other = False
            self._evidence.own(fits)
            return True
        dialect, frames = self._evidence.other(self._dialect, fits, follows=self._other)
        if self._adopt is None or frames < LATCH_FRAMES or not self._adopt(dialect, frames):
            self._other = True
            self.drops[_DROPPED[fits[0]]] += 1
            return False
        self._other = False
        self._evidence = DialectEvidence()
        self._dialect = dialect
        self._usual = _USUAL[dialect]
        return True

    def _skip_garbage(self) -> None:
        self._opening = self._other = False
        if not self._lost:
            self.drops["garbage"] += 1
            self._lost = True


def _usual_a(data: bytes, at: int, closing: int) -> bytes:
    """The packet of the frame data[at : closing + 1] if it is good and no flag is in its FCS.

    b"" says nothing: `inspect_frame` then judges. It would take every packet that this takes.
    """
    body = data[at + HEAD_BYTES : closing - 2]
    escapes = body.count(ESCAPE)
    packet = unescape(body) if escapes else body
    count = data[at + 2]
    if (
        len(packet) == count == len(body) - escapes
        and fcs16_from(packet, HEAD_FCS[count]) == data[closing - 2] << 8 | data[closing - 1]
    ):
        return packet
    return b""


def _usual_other(head_fcs: list[int], xorout: int) -> _Usual:
    """The same for another sum. A frame with an escape in its FCS is left to `inspect_frame`."""

    def usual(data: bytes, at: int, closing: int) -> bytes:
        body = data[at + HEAD_BYTES : closing - 2]
        escapes = body.count(ESCAPE)
        packet = unescape(body) if escapes else body
        count = data[at + 2]
        high, low = data[closing - 2], data[closing - 1]
        if (
            len(packet) == count == len(body) - escapes
            and fcs16_from(packet, head_fcs[count]) ^ xorout == high << 8 | low
            and ESCAPE not in (high, low)
        ):
            return packet
        return b""

    return usual


_USUAL: Final[dict[Dialect, _Usual]] = {
    Dialect.A: _usual_a,
    Dialect.B: _usual_other(HEAD_FCS, FCS16_XOROUT_X25),
    Dialect.C: _usual_other(HEAD_FCS, FCS16_XOROUT_X25),
    Dialect.D: _usual_other(HEAD_FCS_SEED0, 0),
}
