"""One serial frame: its bytes, and the judgement on them. DSP0253; reference "mctp", 4.

    7E | revision 01 | byte count | packet, 7E and 7D escaped | FCS high | FCS low | 7E

The FCS covers revision, count and the packet before escaping. Four dialects are met in the field
(4.2); they differ in the FCS, and only in that:

    A   not complemented, seed FFFF, sent as it is        Linux, libmctp, PICMG, mctp-rs
    B   complemented (X.25), its bytes escaped like data  OpenDevicePartnership mctp-rs
    C   complemented (X.25), sent as it is                Caliptra's USB-serial agent
    D   not complemented, seed 0, sent as it is           older Linux

B and C are the same bytes unless the FCS holds 7D or 7E. Such a frame is called B here, the
dialect that is better known; it is C only where an FCS that B would have escaped came raw. No
other two dialects have a frame in common.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Final, NamedTuple, TypeAlias

from protocol.crc import FCS16_XOROUT_X25, fcs16, fcs16_from, fcs16_seed0

FLAG: Final = 0x7E
ESCAPE: Final = 0x7D
ESCAPE_XOR: Final = 0x20
REVISION: Final = 0x01
MAX_PACKET_BYTES: Final = 255  # the count is one byte
HEAD_BYTES: Final = 3  # flag, revision, count
TAIL_BYTES: Final = 3  # FCS and flag
SPECIAL: Final = (ESCAPE, FLAG)  # bytes that are escaped in the packet

_FLAG: Final = bytes([FLAG])
_ESCAPED_FLAG: Final = bytes([ESCAPE, FLAG ^ ESCAPE_XOR])
_ESCAPE: Final = bytes([ESCAPE])
_ESCAPED_ESCAPE: Final = bytes([ESCAPE, ESCAPE ^ ESCAPE_XOR])
_HEADS: Final = [bytes([REVISION, count]) for count in range(MAX_PACKET_BYTES + 1)]
HEAD_FCS: Final = [fcs16(head) for head in _HEADS]  # by count; the packet's bytes go on from it
HEAD_FCS_SEED0: Final = [fcs16_seed0(head) for head in _HEADS]  # the same in dialect D


class Dialect(StrEnum):
    """How a frame's FCS was made (table above)."""

    A = "A"
    B = "B"
    C = "C"
    D = "D"


# The dialects that a frame is right in; what follows is all that can be.
_FITS_A: Final = (Dialect.A,)
_FITS_B: Final = (Dialect.B,)
_FITS_C: Final = (Dialect.C,)
_FITS_B_AND_C: Final = (Dialect.B, Dialect.C)
_FITS_D: Final = (Dialect.D,)

_FOREIGN: Final = {
    Dialect.B: "dialect_b",
    Dialect.C: "dialect_c",
    Dialect.D: "dialect_d",
}  # as reasons

Framer: TypeAlias = Callable[[bytes], bytes]


class Verdict(NamedTuple):
    """What stands at an opening flag.

    `reason` is None for a good frame of dialect A. `offset` is the byte at fault; `end` the first
    byte that the frame did not use. `packet` and `dialect` are given whenever the FCS is right in
    any dialect; `fits` names all dialects in which the whole frame is right, its end too.
    """

    reason: str | None
    offset: int
    end: int
    packet: bytes = b""
    dialect: Dialect | None = None
    fcs: int = -1  # as it came; -1 where the frame broke before it
    text: str = ""
    fits: tuple[Dialect, ...] = ()


def frame_serial(packet: bytes) -> bytes:
    """One packet between its flags, dialect A.

    Raises `ValueError` for what we must not send: an empty packet, one above 255 bytes, and
    those of 125 and 126 bytes, whose count stacks disagree on how to escape (reference 4.2).
    """
    count = len(packet)
    if not 1 <= count <= MAX_PACKET_BYTES or count in SPECIAL:
        raise ValueError(f"a serial frame takes 1..255 bytes but not 125 or 126, got {count}")
    head = _HEADS[count]
    fcs = fcs16_from(packet, HEAD_FCS[count])
    if ESCAPE in packet or FLAG in packet:
        packet = escape(packet)
    return b"%b%b%b%b%b" % (_FLAG, head, packet, fcs.to_bytes(2, "big"), _FLAG)


def framer(dialect: Dialect) -> Framer:
    """`frame_serial` of this dialect; raises as it does."""
    if dialect is Dialect.A:
        return frame_serial

    def frame(packet: bytes) -> bytes:
        wire = frame_serial(packet)
        count = len(packet)
        if dialect is Dialect.D:
            tail = fcs16_from(packet, HEAD_FCS_SEED0[count]).to_bytes(2, "big")
        else:
            x25 = fcs16_from(packet, HEAD_FCS[count]) ^ FCS16_XOROUT_X25
            tail = x25.to_bytes(2, "big")
            if dialect is Dialect.B:
                tail = escape(tail)
        return wire[:-TAIL_BYTES] + tail + _FLAG

    return frame


def escape(data: bytes) -> bytes:
    """`data` as it goes between two flags."""
    return data.replace(_ESCAPE, _ESCAPED_ESCAPE).replace(_FLAG, _ESCAPED_FLAG)


def unescape(body: bytes) -> bytes:
    """`body` with its legal escapes undone; illegal ones stay, so that the length is wrong."""
    return body.replace(_ESCAPED_FLAG, _FLAG).replace(_ESCAPED_ESCAPE, _ESCAPE)


def inspect_frame(data: bytes, start: int, max_packet_bytes: int) -> Verdict | None:
    """Judge the frame whose opening flag is `data[start]`; None while bytes are missing.

    Reasons: bad_revision, too_long, flag_in_body, bad_escape, bad_fcs, no_end_flag, empty, and
    dialect_b, dialect_c, dialect_d for frames that are right in another dialect. More bytes never
    change a verdict once there is one, so that it does not matter how a stream is cut.
    """
    size = len(data)
    if size < start + 2:
        return None
    if data[start + 1] != REVISION:
        text = f"revision is 0x{data[start + 1]:02X}, not 0x{REVISION:02X}"
        return Verdict("bad_revision", start + 1, start + 1, text=text)
    if size < start + HEAD_BYTES:
        return None
    count = data[start + 2]
    if count > max_packet_bytes:
        text = f"byte count is {count}, the limit of this link {max_packet_bytes}"
        return Verdict("too_long", start + 2, start + 2, text=text)
    begin = start + HEAD_BYTES
    end = begin + count
    while end <= size:  # every escape makes the body one byte longer
        longer = begin + count + data.count(ESCAPE, begin, end)
        if longer == end:
            break
        end = longer
    flag = data.find(FLAG, begin, end)
    wrong = _bad_escape(data, begin, flag if flag >= 0 else min(end, size))
    if wrong >= 0:
        text = f"0x{data[wrong]:02X} after 0x7D; only 0x5D and 0x5E may follow"
        return Verdict("bad_escape", wrong, wrong, text=text)
    if flag >= 0:
        text = f"a flag after {flag - begin} bytes of the body; byte count is {count}"
        return Verdict("flag_in_body", flag, flag, text=text)
    if end + TAIL_BYTES > size:
        return None
    packet = data[begin:end]
    if len(packet) != count:
        packet = unescape(packet)
    return _judge_fcs(data, end, packet)


def _judge_fcs(data: bytes, end: int, packet: bytes) -> Verdict | None:
    """The verdict on a whole body; its FCS begins at `end`, three bytes of the tail are there."""
    covered = _HEADS[len(packet)] + packet
    wanted = fcs16(covered)
    x25 = wanted ^ FCS16_XOROUT_X25
    fcs = data[end] << 8 | data[end + 1]
    after = end + TAIL_BYTES
    text = f"FCS is 0x{fcs:04X}, the bytes give 0x{wanted:04X}"
    fits: tuple[Dialect, ...] = ()
    if fcs == wanted:
        fits = _FITS_A
    elif fcs == x25:
        raw = data[end] in SPECIAL or data[end + 1] in SPECIAL
        fits = _FITS_C if raw else _FITS_B_AND_C
    elif fcs == fcs16_seed0(covered):
        fits = _FITS_D
    if fits and data[after - 1] == FLAG:
        dialect = fits[0]
        if dialect is not Dialect.A:
            return Verdict(_FOREIGN[dialect], end, after, packet, dialect, fcs, text, fits)
        if packet:
            return Verdict(None, end, after, packet, dialect, fcs, fits=fits)
        return Verdict("empty", end - 1, after, packet, dialect, fcs, "byte count is 0", fits)
    escaped = escape(x25.to_bytes(2, "big")) + _FLAG
    if len(escaped) > TAIL_BYTES:
        came = data[end : end + len(escaped)]
        if came == escaped:
            after = end + len(escaped)
            text = f"FCS is 0x{x25:04X}, the bytes give 0x{wanted:04X}"
            return Verdict("dialect_b", end, after, packet, Dialect.B, x25, text, _FITS_B)
        if escaped.startswith(came):
            return None
    if fits:
        text = f"0x{data[after - 1]:02X} where the closing flag belongs"
        return Verdict("no_end_flag", after - 1, after - 1, packet, fits[0], fcs, text)
    return Verdict("bad_fcs", end, after, fcs=fcs, text=text)


def _bad_escape(data: bytes, begin: int, end: int) -> int:
    """Where the first byte in data[begin:end] is that may not follow a 7D; -1 if none."""
    escapes = data.count(ESCAPE, begin, end)
    if escapes == data.count(_ESCAPED_FLAG, begin, end) + data.count(_ESCAPED_ESCAPE, begin, end):
        return -1
    at = data.find(ESCAPE, begin, end)
    while 0 <= at < end - 1:
        if data[at + 1] ^ ESCAPE_XOR not in SPECIAL:
            return at + 1
        at = data.find(ESCAPE, at + 2, end)
    return -1  # the last byte is a 7D, what follows it has not come
