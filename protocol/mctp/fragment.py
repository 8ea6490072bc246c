"""A message cut into packets. DSP0236 §8.3; reference "mctp", 3.2."""

from functools import lru_cache
from typing import Final

from protocol.mctp.packet import (
    BASELINE_UNIT_BYTES,
    EID_BROADCAST,
    FLAG_EOM,
    FLAG_SOM,
    SEQ_MASK,
    header,
    is_destination,
    is_source,
)

MAX_MESSAGE_BYTES: Final = 65536  # type byte included


@lru_cache(maxsize=1024)
def _alone(dest_eid: int, src_eid: int, tag: int, to: bool, first_seq: int) -> bytes:
    """The header of a message of one packet."""
    if not is_destination(dest_eid) or not is_source(src_eid):
        raise ValueError(f"can't send from EID {src_eid} to EID {dest_eid}")
    flags = FLAG_SOM | FLAG_EOM
    seq = first_seq & SEQ_MASK
    return header(dest_eid=dest_eid, src_eid=src_eid, flags=flags, seq=seq, to=to, tag=tag)


def fragment(
    message: bytes,
    *,
    dest_eid: int,
    src_eid: int,
    tag: int,
    to: bool,
    first_seq: int = 0,
    unit_bytes: int = BASELINE_UNIT_BYTES,
) -> list[bytes]:
    """The packets of `message`, whose first byte is its type and counts in the unit.

    All packets but the last hold exactly `unit_bytes`. A unit above 64 must have been negotiated
    or configured: a conformant bridge cuts larger ones short (OpenBIC#2766). Raises `ValueError`
    for an empty or oversized message or values out of range.
    """
    size = len(message)
    if 1 <= size <= BASELINE_UNIT_BYTES:  # one packet whatever the unit: heartbeats, grants
        return [_alone(dest_eid, src_eid, tag, to, first_seq) + message]
    if not 1 <= size <= MAX_MESSAGE_BYTES:
        raise ValueError(f"a message has 1..{MAX_MESSAGE_BYTES} bytes, this one {len(message)}")
    if unit_bytes < BASELINE_UNIT_BYTES:
        raise ValueError(f"a unit has at least {BASELINE_UNIT_BYTES} bytes, not {unit_bytes}")
    if not is_destination(dest_eid) or not is_source(src_eid):
        raise ValueError(f"can't send from EID {src_eid} to EID {dest_eid}")
    if dest_eid == EID_BROADCAST and len(message) > unit_bytes:
        raise ValueError("a broadcast message fits one packet")
    last = (len(message) - 1) // unit_bytes
    return [
        header(
            dest_eid=dest_eid,
            src_eid=src_eid,
            flags=(0 if index else FLAG_SOM) | (FLAG_EOM if index == last else 0),
            seq=first_seq + index & SEQ_MASK,
            to=to,
            tag=tag,
        )
        + message[index * unit_bytes : (index + 1) * unit_bytes]
        for index in range(last + 1)
    ]
