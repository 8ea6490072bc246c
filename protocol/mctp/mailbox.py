"""MCTP in a mailbox: packets as entries of a small window's rings. protocol/SPEC.md section 17.

Our own transport binding, for modules whose control link is memory that both ends reach. The rings,
their handshake and their checks are those of section 14; here is what an entry is when it carries a
packet, and which geometry a mailbox has.
"""

from typing import Final

from protocol.errors import ProtocolError
from protocol.mctp.packet import HEADER_BYTES, HEADER_VERSION, MIN_FRAGMENT_BYTES, VERSION_MASK
from protocol.window import KIND_MCTP, Geometry, geometry_for

MAILBOX_ENTRIES: Final = 32
MAILBOX_SLOT_BYTES: Final = 256
PACKET_MAX_BYTES: Final = 255  # as on serial lines, so that a packet may go on there
HALF_MIN_BYTES: Final = 4096 + MAILBOX_ENTRIES * MAILBOX_SLOT_BYTES
ENTRY_ID: Final = 0  # what transfer_id and chunk hold: the header of MCTP says all


def mailbox_geometry(half_bytes: int) -> Geometry:
    """The geometry that we write. Raises ValueError for a half that is too small."""
    return geometry_for(MAILBOX_ENTRIES, MAILBOX_SLOT_BYTES, half_bytes)


def check_packet(packet: bytes) -> bytes:
    """A packet on its way out. Raises ValueError for one that no mailbox carries."""
    if not MIN_FRAGMENT_BYTES <= len(packet) <= PACKET_MAX_BYTES:
        raise ValueError(
            f"an MCTP packet of {len(packet)} B; a mailbox carries {MIN_FRAGMENT_BYTES} to "
            f"{PACKET_MAX_BYTES} B"
        )
    return packet


def packet_of_entry(kind: int, transfer_id: int, chunk: int, data: bytes) -> bytes:
    """The packet in an entry whose CRCs were right.

    Raises ProtocolError: kind (no packet), reserved, short, long, version.
    """
    if kind != KIND_MCTP:
        raise ProtocolError(f"entry of kind {kind}, not {KIND_MCTP}", frame=data, code="kind")
    if transfer_id != ENTRY_ID or chunk != ENTRY_ID:
        detail = f"transfer_id {transfer_id:#x} and chunk {chunk} of a packet's entry are not 0"
        raise ProtocolError(detail, frame=data, code="reserved")
    if len(data) < MIN_FRAGMENT_BYTES:
        detail = f"an MCTP packet has a header of {HEADER_BYTES} B and something behind it"
        raise ProtocolError(detail, frame=data, code="short")
    if len(data) > PACKET_MAX_BYTES:
        detail = f"an MCTP packet of more than {PACKET_MAX_BYTES} B"
        raise ProtocolError(detail, frame=data, code="long")
    if data[0] & VERSION_MASK != HEADER_VERSION:
        detail = f"MCTP header version {data[0] & VERSION_MASK}, not {HEADER_VERSION}"
        raise ProtocolError(detail, frame=data, code="version", offset=0)
    return data
