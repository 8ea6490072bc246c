"""The CNM's end of a control link: link, MCTP control answers and endpoint; and its hello.

Init has one for the MC link, the agent one for its own. The EID is 0 until the card sets it
(DSP0236 §8.17.2); the card's own EID is learned from that very request.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from firmware.endpoint import TYPE_CONTROL, TYPE_VENDOR_PCI, Endpoint
from firmware.link import Link
from hal.ports import ByteStream, Entropy, Reactor
from protocol.apf import (
    LAYOUT_HASH,
    VERSION_CURRENT,
    VERSION_MIN,
    BootState,
    HelloReply,
    HelloRequest,
    Role,
    common_version,
)
from protocol.mctp.control import ControlState, Responder, VendorSupport
from protocol.mctp.serial_frame import Dialect

SOFTWARE: Final = "apf-cnm 0.1.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who this boot of this CNM is."""

    cnm_uuid: bytes  # of the module: the same at every boot
    boot_id: bytes  # random at every boot
    vendor_id: int


def open_endpoint(
    reactor: Reactor,
    open_stream: Callable[[], ByteStream],
    *,
    entropy: Entropy,
    identity: Identity,
    name: str,
    dialect: Dialect | None = None,
) -> Endpoint:
    """One end, ready for `serve`. A line that can't be opened is tried again for ever. It follows
    the card's dialect where none is given."""
    link = Link(reactor, open_stream, name=name, dialect=dialect)

    def on_eid(eid: int) -> None:
        link.local_eid = eid

    state = ControlState(
        uuid=identity.cnm_uuid,
        types=(TYPE_CONTROL, TYPE_VENDOR_PCI),
        vendors=(VendorSupport(vendor=identity.vendor_id, cmd_set=VERSION_CURRENT),),
    )
    responder = Responder(state, on_eid=on_eid)
    return Endpoint(
        reactor,
        link,
        entropy=entropy,
        name=name,
        vendor_id=identity.vendor_id,
        answer_control=responder.answer,
    )


def speaks_our_language(request: HelloRequest) -> bool:
    """Do the version windows meet, with the same layouts where the version is the same?

    A card that does not is answered all the same, so that it can say why it won't use this
    module, but it does not bind the module.
    """
    version = common_version(request.version_min, request.version_current)
    same = request.version_current == VERSION_CURRENT
    return version is not None and (not same or request.layout_hash == LAYOUT_HASH)


def hello_reply(
    identity: Identity, *, bound_card_uuid: bytes, role: Role, boot_state: BootState
) -> HelloReply:
    return HelloReply(
        cnm_uuid=identity.cnm_uuid,
        boot_id=identity.boot_id,
        bound_card_uuid=bound_card_uuid,
        version_min=VERSION_MIN,
        version_current=VERSION_CURRENT,
        layout_hash=LAYOUT_HASH,
        role=role,
        boot_state=boot_state,
        software=SOFTWARE,
    )
