"""Packets out of a serial byte stream, dialect A of DSP0253. Frames: `protocol.mctp.serial_frame`.

In dialect A the FCS may hold a raw 7E, and so may the count: therefore a frame is parsed by its
length, and a flag serves only to find the next one, from the byte after the opening flag of a
frame that failed. So a damaged frame costs itself and nothing else, but for the one chance in
65,536 that wrong bytes have a right FCS. Framing judges framing only: whether a packet is long
enough is for MCTP to say.
"""

from collections import Counter
from typing import Final

from protocol.crc import fcs16
from protocol.mctp.serial_frame import (
    ESCAPE,
    FLAG,
    HEAD_BYTES,
    MAX_PACKET_BYTES,
    REVISION,
    TAIL_BYTES,
    frame_serial,
    inspect_frame,
)

__all__ = ["MAX_FRAME_BYTES", "SerialDeframer", "frame_serial"]

# Count 255, every byte escaped. What is kept between two feeds is shorter than that, and two.
MAX_FRAME_BYTES: Final = HEAD_BYTES + 2 * MAX_PACKET_BYTES + TAIL_BYTES


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
        while at < size:
            if data[at] != FLAG:
                self._skipped("garbage")
                self._opening = False
                at = data.find(FLAG, at)
                if at < 0:
                    break
            while at + 1 < size and data[at + 1] == FLAG:
                self._opening = True
                at += 1
            # The usual frame: all of it here, nothing escaped. Equal to inspect_frame, tested so.
            if at + HEAD_BYTES < size and data[at + 1] == REVISION:
                begin = at + HEAD_BYTES
                end = begin + data[at + 2]
                if (
                    begin < end <= begin + self._max_packet_bytes
                    and end + TAIL_BYTES <= size
                    and data[end + 2] == FLAG
                    and data.find(ESCAPE, begin, end) < 0
                    and data.find(FLAG, begin, end) < 0
                    and fcs16(data[at + 1 : end]) == data[end] << 8 | data[end + 1]
                ):
                    packets.append(data[begin:end])
                    at = end + 2
                    self._opening = self._lost = False
                    continue
            verdict = inspect_frame(data, at, self._max_packet_bytes)
            if verdict is None:
                self._rest = data[at:]
                break
            if verdict.reason is None:
                packets.append(verdict.packet)
                at = verdict.end - 1
                self._opening = self._lost = False
            else:
                if verdict.reason == "bad_revision" and not self._opening:
                    self._skipped("garbage")  # it was a closing flag, or no flag at all
                else:
                    self.drops[verdict.reason] += 1
                    self._lost = True
                self._opening = False
                at += 1
        return packets

    def _skipped(self, reason: str) -> None:
        if not self._lost:
            self.drops[reason] += 1
            self._lost = True
