"""The endpoint's side of MCTP control: what it is asked, and what it answers. DSP0236 §12."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from protocol.errors import ProtocolError
from protocol.mctp.control_bodies import (
    REQUESTS,
    SELECTOR_END,
    TYPE_BASE,
    VERSION_BASE,
    ControlBody,
    GetEidRequest,
    GetEidResponse,
    GetTypesRequest,
    GetTypesResponse,
    GetUuidRequest,
    GetUuidResponse,
    GetVdmRequest,
    GetVdmResponse,
    GetVersionRequest,
    GetVersionResponse,
    SetEidOperation,
    SetEidRequest,
    SetEidResponse,
    VendorFormat,
)
from protocol.mctp.control_message import CompletionCode, ControlMessage
from protocol.mctp.packet import EID_FIRST, EID_LAST, TYPE_CONTROL

Answer: TypeAlias = ControlBody | CompletionCode


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorSupport:
    """One vendor protocol that the endpoint speaks."""

    vendor: int
    cmd_set: int
    format: VendorFormat = VendorFormat.PCI


@dataclass(slots=True, kw_only=True)
class ControlState:
    """What an endpoint says of itself. The responder changes `eid` and nothing else."""

    uuid: bytes  # 16 bytes
    eid: int = 0  # 0 until one is set
    type_byte: int = 0  # of GET_EID: a simple endpoint with a dynamic EID
    medium: int = 0
    types: tuple[int, ...] = (TYPE_CONTROL,)
    vendors: tuple[VendorSupport, ...] = ()
    versions: Mapping[int, tuple[bytes, ...]] = field(
        default_factory=lambda: {TYPE_BASE: (VERSION_BASE,), TYPE_CONTROL: (VERSION_BASE,)}
    )

    def __post_init__(self) -> None:
        if len(self.uuid) != 16 or len(self.vendors) >= SELECTOR_END:
            raise ValueError("a uuid has 16 bytes, and there are at most 254 vendor entries")


class Responder:
    """Answers control requests for one endpoint. Never raises on what a peer sends.

    `on_eid` is called with the new EID when Set EID is accepted. `drops` counts what gets no
    answer: the reasons of `ControlMessage.from_bytes`, "response" and "datagram".
    """

    def __init__(self, state: ControlState, *, on_eid: Callable[[int], None] | None = None) -> None:
        self.state = state
        self.drops: Counter[str] = Counter()
        self._on_eid = on_eid

    def answer(self, message: bytes) -> bytes | None:
        """The response to `message` (type byte included), or None where none is due.

        An unknown command gets UNSUPPORTED, a wrong length INVALID_LENGTH. A retried request is
        answered anew: every command here has the same effect twice as once.
        """
        try:
            request = ControlMessage.from_bytes(message)
        except ProtocolError as exc:
            self.drops[exc.code] += 1
            return None
        if not request.rq or request.d:
            self.drops["datagram" if request.rq else "response"] += 1
            return None
        answer = self._act(request)
        body, cc = b"", CompletionCode.SUCCESS
        if isinstance(answer, ControlBody):
            body = answer.to_body()
        else:
            cc = answer
        return ControlMessage(
            rq=False, iid=request.iid, cmd=request.cmd, cc=cc, body=body
        ).to_bytes()

    def _act(self, request: ControlMessage) -> Answer:
        kind = REQUESTS.get(request.cmd)
        if kind not in _SUPPORTED or kind is None:
            return CompletionCode.UNSUPPORTED
        try:
            body = kind.from_body(request.body)
        except ProtocolError as exc:
            if exc.code == "bad_length":
                return CompletionCode.INVALID_LENGTH
            return CompletionCode.INVALID_DATA
        state = self.state
        match body:
            case SetEidRequest():
                return self._set_eid(body)
            case GetEidRequest():
                return GetEidResponse(eid=state.eid, type_byte=state.type_byte, medium=state.medium)
            case GetUuidRequest():
                return GetUuidResponse(uuid=state.uuid)
            case GetVersionRequest():
                entries = state.versions.get(body.type_queried)
                if entries is None:
                    return CompletionCode.TYPE_NOT_SUPPORTED
                return GetVersionResponse(entries=entries)
            case GetTypesRequest():
                return GetTypesResponse(types=state.types)
            case GetVdmRequest():
                return self._vendor(body.selector)
        raise AssertionError(f"{kind} is supported but has no answer")

    def _set_eid(self, body: SetEidRequest) -> Answer:
        if body.op not in (SetEidOperation.SET, SetEidOperation.FORCE):
            return CompletionCode.INVALID_DATA  # no static EID, and no discovery on our bindings
        if not EID_FIRST <= body.eid <= EID_LAST:
            return CompletionCode.INVALID_DATA
        self.state.eid = body.eid
        if self._on_eid is not None:
            self._on_eid(body.eid)
        return SetEidResponse(eid=body.eid)

    def _vendor(self, selector: int) -> Answer:
        vendors = self.state.vendors
        if selector >= len(vendors):
            return CompletionCode.INVALID_DATA
        entry = vendors[selector]
        return GetVdmResponse(
            next_selector=selector + 1 if selector + 1 < len(vendors) else SELECTOR_END,
            format=entry.format,
            vendor=entry.vendor,
            cmd_set=entry.cmd_set,
        )


_SUPPORTED: Final = frozenset(
    {
        SetEidRequest,
        GetEidRequest,
        GetUuidRequest,
        GetVersionRequest,
        GetTypesRequest,
        GetVdmRequest,
    }
)
