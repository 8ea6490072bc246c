"""MCTP control protocol, both sides: the names that the rest of the project uses.

Messages: `control_message`; typed bodies: `control_bodies`; the answering side:
`control_responder`. Here is the asking side: requests made, responses matched and read.
"""

from protocol.errors import ProtocolError
from protocol.mctp.control_bodies import (
    HANDLE_END,
    REQUESTS,
    RESPONSES,
    SELECTOR_END,
    TYPE_BASE,
    VERSION_BASE,
    AllocateEidsRequest,
    AllocateEidsResponse,
    ControlBody,
    GetEidRequest,
    GetEidResponse,
    GetRoutingTableRequest,
    GetRoutingTableResponse,
    GetTypesRequest,
    GetTypesResponse,
    GetUuidRequest,
    GetUuidResponse,
    GetVdmRequest,
    GetVdmResponse,
    GetVersionRequest,
    GetVersionResponse,
    RoutingEntry,
    SetEidOperation,
    SetEidRequest,
    SetEidResponse,
    VendorFormat,
    version_text,
)
from protocol.mctp.control_message import Command, CompletionCode, ControlMessage
from protocol.mctp.control_responder import ControlState, Responder, VendorSupport

__all__ = [
    "HANDLE_END",
    "REQUESTS",
    "RESPONSES",
    "SELECTOR_END",
    "TYPE_BASE",
    "VERSION_BASE",
    "AllocateEidsRequest",
    "AllocateEidsResponse",
    "Command",
    "CompletionCode",
    "ControlBody",
    "ControlMessage",
    "ControlState",
    "GetEidRequest",
    "GetEidResponse",
    "GetRoutingTableRequest",
    "GetRoutingTableResponse",
    "GetTypesRequest",
    "GetTypesResponse",
    "GetUuidRequest",
    "GetUuidResponse",
    "GetVdmRequest",
    "GetVdmResponse",
    "GetVersionRequest",
    "GetVersionResponse",
    "Responder",
    "RoutingEntry",
    "SetEidOperation",
    "SetEidRequest",
    "SetEidResponse",
    "VendorFormat",
    "VendorSupport",
    "build_request",
    "match_response",
    "read_response",
    "version_text",
]


def build_request(body: ControlBody, *, iid: int) -> bytes:
    """A whole request, type byte included. A retry is the same bytes again: it keeps its iid.

    Raises `ValueError` for values out of range.
    """
    return ControlMessage(rq=True, iid=iid, cmd=body.CMD, body=body.to_body()).to_bytes()


def match_response(request: bytes, response: bytes) -> ControlMessage | None:
    """`response` if it answers `request`, whole messages both; None for anything else.

    Matched are type without IC, Rq = 0, instance id and command: a late answer to an earlier
    request is not taken for this one (CodeConstruct/mctp#152). The caller has matched link, EIDs
    and tag. Raises `ProtocolError` only for a broken `request`, which is ours.
    """
    asked = ControlMessage.from_bytes(request)
    try:
        got = ControlMessage.from_bytes(response)
    except ProtocolError:
        return None
    return got if not got.rq and (got.iid, got.cmd) == (asked.iid, asked.cmd) else None


def read_response(message: ControlMessage) -> ControlBody | None:
    """The typed body of a response; None where the completion code says error.

    Raises `ProtocolError`: "not_response", "unknown_command", or those of `from_body`.
    """
    if message.rq:
        raise ProtocolError("this is a request", frame=message.body, code="not_response")
    if message.cc != CompletionCode.SUCCESS:
        return None
    kind = RESPONSES.get(message.cmd)
    if kind is None:
        detail = f"no layout for the response to command 0x{message.cmd:02X}"
        raise ProtocolError(detail, frame=message.body, code="unknown_command")
    return kind.from_body(message.body)
