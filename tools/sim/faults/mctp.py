"""L13 to L18: whole frames, good packets, and messages that are not.

The packets carry what no endpoint knows (another vendor's message), so that nothing happens if the
firmware puts one together after all.
"""

from collections.abc import Callable
from typing import Final

from protocol.apf import Kind, encode
from protocol.apf.registry import UnknownBody
from protocol.mctp.fragment import MAX_MESSAGE_BYTES, fragment
from protocol.mctp.packet import (
    BASELINE_UNIT_BYTES,
    EID_FIRST,
    EID_LAST,
    FLAG_SOM,
    SEQ_MASK,
    header,
)
from protocol.mctp.serial import frame_serial
from tools.sim.faults.evidence import End
from tools.sim.faults.links import injected
from tools.sim.faults.types import Fault, Site

OTHER_VENDOR: Final = b"\x7e\xff\xfe"
PEER_EID: Final = 9  # before the far end's is known
UNKNOWN_OPCODE: Final = 0x7F01
SOURCES: Final = 24  # more than a reassembler keeps messages of


def message(site: Site, packets: int) -> bytes:
    """Another vendor's message of so many packets."""
    length = BASELINE_UNIT_BYTES * packets - site.rng.randint(1, BASELINE_UNIT_BYTES - 8)
    return OTHER_VENDOR + site.rng.randbytes(length - len(OTHER_VENDOR))


def packets_of(
    data: bytes, end: End, *, tag: int, to: bool = True, src_eid: int | None = None
) -> list[bytes]:
    """As the far end of this link would send them."""
    return fragment(
        data,
        dest_eid=end.link.local_eid,
        src_eid=(end.link.peer_eid or PEER_EID) if src_eid is None else src_eid,
        tag=tag,
        to=to,
    )


def framed(packets: list[bytes]) -> bytes:
    """On the wire."""
    return b"".join(frame_serial(packet) for packet in packets)


def _tag(site: Site) -> int:
    return site.rng.randrange(8)


def _lost_first(site: Site, end: End) -> bytes:
    return framed(packets_of(message(site, site.rng.randint(2, 5)), end, tag=_tag(site))[1:])


def _lost_last(site: Site, end: End) -> bytes:
    return framed(packets_of(message(site, site.rng.randint(2, 5)), end, tag=_tag(site))[:-1])


def _gap(site: Site, end: End) -> bytes:
    packets = packets_of(message(site, site.rng.randint(3, 6)), end, tag=_tag(site))
    del packets[site.rng.randrange(1, len(packets) - 1)]
    return framed(packets)


def _interleaved(site: Site, end: End) -> bytes:
    tag, count = _tag(site), site.rng.randint(3, 5)
    pairs = zip(
        packets_of(message(site, count), end, tag=tag),
        packets_of(message(site, count), end, tag=tag),
        strict=True,
    )
    return framed([packet for pair in pairs for packet in pair])


def _never_ending(site: Site, end: End) -> bytes:
    """More begun messages than there is room for, of one peer or of many; or one that is longer
    than any message may be."""
    kind = site.rng.randrange(3)
    if kind == 0:
        return framed(_endless(end, _tag(site)))
    if kind == 1:
        keys = [(tag, to) for tag in range(8) for to in (True, False)]
        begun = [packets_of(message(site, 2), end, tag=tag, to=to)[0] for tag, to in keys]
    else:
        eids = site.rng.sample(range(EID_FIRST, EID_LAST + 1), SOURCES)
        begun = [packets_of(message(site, 2), end, tag=0, src_eid=eid)[0] for eid in eids]
    return framed(begun)


def _endless(end: End, tag: int) -> list[bytes]:
    """One packet more than the longest message has, and no last one."""
    return [
        header(
            dest_eid=end.link.local_eid,
            src_eid=end.link.peer_eid or PEER_EID,
            flags=0 if index else FLAG_SOM,
            seq=index & SEQ_MASK,
            to=True,
            tag=tag,
        )
        + (b"" if index else OTHER_VENDOR).ljust(BASELINE_UNIT_BYTES, b"\0")
        for index in range(MAX_MESSAGE_BYTES // BASELINE_UNIT_BYTES + 1)
    ]


def _eids(site: Site, end: End) -> bytes:
    """To an EID that nobody has here, and from our own."""
    notice = encode(UnknownBody(opcode=UNKNOWN_OPCODE, data=b""), kind=Kind.NOTICE, message_id=1)
    unknown = site.rng.randint(EID_FIRST + 8, EID_LAST)
    stray = fragment(
        notice, dest_eid=unknown, src_eid=end.link.peer_eid or PEER_EID, tag=0, to=True
    )
    return framed([*stray, *packets_of(notice, end, tag=0, src_eid=end.link.local_eid or PEER_EID)])


def _eids_seen(end: End) -> Callable[[], bool]:
    stray, twin = end.grew("not_local"), end.grew("rx_unknown_notice")
    return lambda: (stray() or not end.link.local_eid) and twin()


def _fault(fault_id: str, text: str, frames: Callable[[Site, End], bytes], *counters: str) -> Fault:
    return Fault(
        id=fault_id,
        text=text,
        inject=injected(fault_id, frames, lambda end: end.grew(*counters), text),
    )


MCTP_FAULTS: Final = (
    _fault("L13", "the first packet of a message is lost", _lost_first, "no_start"),
    _fault(
        "L14",
        "the last packet of a message is lost",
        _lost_last,
        *("expired", "restarted", "superseded"),
    ),
    _fault("L15", "a gap in the sequence of a message's packets", _gap, "bad_seq"),
    _fault("L16", "two messages with one tag, their packets mixed", _interleaved, "restarted"),
    _fault(
        "L17",
        "messages that never end, until reassembly is full",
        _never_ending,
        *("peer_quota", "evicted", "too_long"),
    ),
    Fault(
        id="L18",
        text="an unknown EID, or one that two ends use",
        inject=injected("L18", _eids, _eids_seen, "to an EID of nobody, and from our own"),
    ),
)
