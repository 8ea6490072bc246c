"""A whole serial capture cut into its frames, the good and the bad, for people to read.

The same judgement as `SerialDeframer`'s (`inspect_frame`), but what is wrong is kept with its
place, frames of the other dialects are taken, and the end of the bytes ends the last frame.
"""

from typing import Final, NamedTuple

from protocol.mctp.serial_frame import FLAG, MAX_PACKET_BYTES, Verdict, inspect_frame

_FOREIGN: Final = frozenset({"dialect_b", "dialect_c", "dialect_d"})


class Piece(NamedTuple):
    """data[start:end] and the verdict on it; reasons as `inspect_frame`, "garbage", "truncated"."""

    start: int
    end: int
    verdict: Verdict

    @property
    def good(self) -> bool:
        """A packet came whole, in whatever dialect."""
        reason = self.verdict.reason
        return bool(self.verdict.packet) and (reason is None or reason in _FOREIGN)


def read_capture(data: bytes) -> list[Piece]:
    """The pieces of `data` in order; at least one.

    What follows a bad frame up to the next good or clearly new one belongs to it.
    """
    pieces: list[Piece] = []
    size = len(data)
    at = 0
    opening = True  # the flag here can't be a closing one
    lost = False  # a bad piece is open, what is skipped belongs to it
    while at < size:
        if data[at] != FLAG:
            begin, at = at, data.find(FLAG, at)
            at = at if at >= 0 else size
            if not lost:
                pieces.append(_garbage(begin, at))
                lost = True
            opening = False
            continue
        if data[at + 1 : at + 2] == bytes([FLAG]):
            opening = True
            at += 1
            continue
        if at + 1 == size:
            break  # nothing after it: it closed something, or the line is idle
        verdict = inspect_frame(data, at, MAX_PACKET_BYTES) or _truncated(data, at)
        if verdict.reason in _FOREIGN and not verdict.packet:
            verdict = verdict._replace(reason="empty", offset=at + 2, text="byte count is 0")
        piece = Piece(at, verdict.end, verdict)
        if piece.good:
            pieces.append(piece)
            at = verdict.end - 1
            opening = lost = False
            continue
        if verdict.reason != "bad_revision" or opening:
            pieces.append(piece._replace(end=_end_of_bad(data, at)))
            lost = True
        elif not lost:
            pieces.append(_garbage(at + 1, _end_of_bad(data, at)))
            lost = True
        opening = False
        at += 1
    return pieces or [Piece(0, size, _truncated(data, 0))]


def _garbage(begin: int, end: int) -> Piece:
    text = f"{end - begin} bytes outside any frame"
    return Piece(begin, end, Verdict("garbage", begin, end, text=text))


def _truncated(data: bytes, start: int) -> Verdict:
    size = len(data)
    if size < start + 3:
        text = "the bytes end before the byte count"
    else:
        text = f"the bytes end inside a frame of byte count {data[start + 2]}"
    return Verdict("truncated", size, size, text=text)


def _end_of_bad(data: bytes, start: int) -> int:
    """Up to the next flag: all that can be said of a frame whose length can't be believed."""
    flag = data.find(FLAG, start + 1)
    return len(data) if flag < 0 else flag + 1
