"""Packets out of a serial byte stream, dialect A of DSP0253. Frames: `protocol.mctp.serial_frame`.

In dialect A the FCS may hold a raw 7E, and so may the count: therefore a frame is parsed by its
length, and a flag serves only to find the next one, from the byte after the opening flag of a
frame that failed. So a damaged frame costs itself and nothing else, but for the one chance in
65,536 that wrong bytes have a right FCS. Framing judges framing only: whether a packet is long
enough is for MCTP to say.
"""

from collections import Counter
from typing import Final

from protocol.crc import fcs16_from
from protocol.mctp.serial_frame import (
    ESCAPE,
    FLAG,
    HEAD_BYTES,
    HEAD_FCS,
    MAX_PACKET_BYTES,
    REVISION,
    TAIL_BYTES,
    frame_serial,
    inspect_frame,
    unescape,
)

__all__ = ["MAX_FRAME_BYTES", "SerialDeframer", "frame_serial"]

# Count 255, every byte escaped. What is kept between two feeds is shorter than that, and two.
MAX_FRAME_BYTES: Final = HEAD_BYTES + 2 * MAX_PACKET_BYTES + TAIL_BYTES


_FLAG: Final = bytes([FLAG])


class SerialDeframer:
    """A byte stream, in pieces of any size, to packets. Never raises on what comes.

    `drops` counts frames by the reasons of `inspect_frame`, and "garbage": runs of bytes outside
    any frame. Bytes that follow a failed frame belong to it and are not counted again. A frame
    may share its closing flag with the next one's opening flag, and flags may repeat. Memory is
    bounded by `MAX_FRAME_BYTES` and two, beside what is fed.
    """

    def __init__(self, max_packet_bytes: int = MAX_PACKET_BYTES) -> None:
        if not 1 <= max_packet_bytes <= MAX_PACKET_BYTES:
            raise ValueError(f"packets have 1..{MAX_PACKET_BYTES} bytes, not {max_packet_bytes}")
        self._max_packet_bytes = max_packet_bytes
        self._rest = b""  # from the flag under judgement on
        self._flag = False  # all that is kept is the closing flag of a good frame
        self._opening = True  # that flag can't be the closing one of a frame
        self._lost = False  # what is skipped now was counted already
        self.drops: Counter[str] = Counter()

    def feed(self, data: bytes) -> list[bytes]:
        """Take what came; the good packets that it completes, in order."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        packets: list[bytes] = []
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
            if closing >= 0 and data[at + 1] == REVISION:
                packet = _usual_packet(data, at, closing)
                if packet and len(packet) <= self._max_packet_bytes:
                    packets.append(packet)
                    self._opening = self._lost = False
                    at = closing
                    if at + 1 == size:
                        self._flag = True
                        break
                    continue
            verdict = inspect_frame(data, at, self._max_packet_bytes)
            if verdict is None:
                self._rest = data[at:]
                break
            if verdict.reason is None:
                packets.append(verdict.packet)
                self._opening = self._lost = False
                at = verdict.end - 1
                continue
            if verdict.reason == "bad_revision" and not self._opening:
                self._skip_garbage()  # it was a closing flag, or no flag at all
            else:
                self.drops[verdict.reason] += 1
                self._lost = True
            self._opening = False
            at += 1
        return packets

    def _skip_garbage(self) -> None:
        self._opening = False
        if not self._lost:
            self.drops["garbage"] += 1
            self._lost = True


def _usual_packet(data: bytes, at: int, closing: int) -> bytes:
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
