"""The Fabric Manager's commands to a switch. CXL 3.1, 7.6.7.1 to 7.6.7.3.

Port and vPPB numbers are bytes. Link widths and speeds are encoded as in PCI Express's link
registers (speed 5 is 32 GT/s).
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final

import construct as cs

from protocol.cxl.layout import Layout, Wire, count_of, counted, member, nested, reserved
from protocol.cxl.message import CciMessage
from protocol.errors import ProtocolError

NO_LD: Final = 0xFFFF  # LD id of a port that is no MLD's
_LOW4: Final = cs.ExprAdapter(cs.Int8ul, lambda v, _: v & 0x0F, lambda v, _: v)
_LOW6: Final = cs.ExprAdapter(cs.Int8ul, lambda v, _: v & 0x3F, lambda v, _: v)


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentifySwitch(Layout):
    """Answer of 5100h, 7.6.7.1.1. Bit n of a mask is port or VCS n."""

    ingress_port: int
    ports: int
    vcs_count: int
    active_ports: int
    active_vcs: int
    vppbs: int
    bound_vppbs: int
    hdm_decoders: int  # of an upstream port
    extra: bytes = b""

    WIRE: ClassVar[Wire] = cs.Struct(
        "ingress_port" / cs.Int8ul,
        "reserved" / reserved(1),
        "ports" / cs.Int8ul,
        "vcs_count" / cs.Int8ul,
        "active_ports" / cs.BytesInteger(32, swapped=True),
        "active_vcs" / cs.BytesInteger(32, swapped=True),
        "vppbs" / cs.Int16ul,
        "bound_vppbs" / cs.Int16ul,
        "hdm_decoders" / cs.Int8ul,
        "extra" / cs.GreedyBytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GetPortStateRequest(Layout):
    """Request of 5101h, 7.6.7.1.2."""

    ports: tuple[int, ...]

    WIRE: ClassVar[Wire] = cs.Struct(
        "count" / count_of(cs.Int8ul, "ports"),
        "ports" / counted(cs.this.count, cs.Int8ul),
        cs.Terminated,
    )


class PortConfig(IntEnum):
    """Table 7-19"""

    DISABLED = 0
    BINDING = 1
    UNBINDING = 2
    DOWNSTREAM = 3
    UPSTREAM = 4
    FABRIC = 5
    INVALID_PORT = 15  # all that follows is undefined


class ConnectedMode(IntEnum):
    """Table 7-19"""

    NOT_CXL = 0
    RCD = 1
    FLIT_68B = 2
    FLIT_256B = 3
    FLIT_256B_LOW_LATENCY = 4
    PBR = 5


class ConnectedType(IntEnum):
    """Table 7-19"""

    NOTHING = 0
    PCIE = 1
    TYPE1 = 2
    TYPE2_OR_SWITCH = 3
    TYPE3_SLD = 4
    TYPE3_MLD = 5
    PBR_COMPONENT = 6


class Ltssm(IntEnum):
    """Table 7-19: the link's major state."""

    DETECT = 0
    POLLING = 1
    CONFIGURATION = 2
    RECOVERY = 3
    L0 = 4
    L0S = 5
    L1 = 6
    L2 = 7
    DISABLED = 8
    LOOPBACK = 9
    HOT_RESET = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class PortState(Layout):
    """One port, table 7-19."""

    port: int
    config: PortConfig | int
    connected_mode: ConnectedMode | int  # of a downstream port
    connected_type: ConnectedType | int
    cxl_modes: int  # bits: 0 RCD, 1 68B flit, 2 256B flit, 3 low-latency 256B, 4 PBR
    max_width: int
    width: int
    speeds_vector: int
    max_speed: int
    speed: int
    ltssm: Ltssm | int
    first_lane: int
    link_flags: int  # bits: 0 lanes reversed, 1 PERST# asserted, 2 presence, 3 power control
    ld_count: int

    WIRE: ClassVar[Wire] = cs.Struct(
        "port" / cs.Int8ul,
        "config" / member(PortConfig, _LOW4),
        "connected_mode" / member(ConnectedMode, _LOW4),
        "reserved" / reserved(1),
        "connected_type" / member(ConnectedType),
        "cxl_modes" / cs.Int8ul,
        "max_width" / _LOW6,
        "width" / _LOW6,
        "speeds_vector" / _LOW6,
        "max_speed" / _LOW6,
        "speed" / _LOW6,
        "ltssm" / member(Ltssm),
        "first_lane" / cs.Int8ul,
        "link_flags" / cs.Int16ul,
        "ld_count" / cs.Int8ul,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PortStates(Layout):
    """Answer of 5101h, 7.6.7.1.2."""

    ports: tuple[PortState, ...]
    extra: bytes = b""

    WIRE: ClassVar[Wire] = cs.Struct(
        "count" / count_of(cs.Int8ul, "ports"),
        "reserved" / reserved(3),
        "ports" / counted(cs.this.count, nested(PortState)),
        "extra" / cs.GreedyBytes,
    )


class PortAction(IntEnum):
    """7.6.7.1.3"""

    ASSERT_PERST = 0
    DEASSERT_PERST = 1
    RESET_PPB = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PortControlRequest(Layout):
    """Request of 5102h, 7.6.7.1.3."""

    port: int
    action: PortAction | int

    WIRE: ClassVar[Wire] = cs.Struct(
        "port" / cs.Int8ul, "action" / member(PortAction), cs.Terminated
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GetVcsInfoRequest(Layout):
    """Request of 5200h, 7.6.7.2.1."""

    first_vppb: int = 0
    vppb_limit: int  # at most so many of each VCS in the answer; at least 1
    vcs: tuple[int, ...]

    WIRE: ClassVar[Wire] = cs.Struct(
        "first_vppb" / cs.Int8ul,
        "vppb_limit" / cs.Int8ul,
        "count" / count_of(cs.Int8ul, "vcs"),
        "vcs" / counted(cs.this.count, cs.Int8ul),
        cs.Terminated,
    )


class Binding(IntEnum):
    """Table 7-32"""

    UNBOUND = 0
    IN_PROGRESS = 1
    PHYSICAL_PORT = 2
    LD = 3
    PID = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Vppb(Layout):
    """What one virtual bridge is bound to, table 7-32."""

    binding: Binding | int
    port: int  # where it is PHYSICAL_PORT or LD
    ld: int  # where it is LD, else FFh

    WIRE: ClassVar[Wire] = cs.Struct(
        "binding" / member(Binding),
        "port" / cs.Int8ul,
        "ld" / cs.Int8ul,
        "reserved" / reserved(1),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class VcsInfo:
    """One virtual switch, table 7-32. `listed` are those vPPBs that the request asked for."""

    vcs: int
    state: int  # 0 disabled, 1 enabled, FFh no such VCS: all else is invalid
    upstream_port: int
    vppbs: int  # how many it has
    listed: tuple[Vppb, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VcsInfos:
    """Answer of 5200h, 7.6.7.2.1. It can't be read without its request, which says how many
    entries each block holds: min(limit, vPPBs that the VCS has from the first one on)."""

    vcs: tuple[VcsInfo, ...]

    @classmethod
    def from_bytes(cls, data: bytes, request: GetVcsInfoRequest) -> "VcsInfos":
        """Raises `ProtocolError`, code "short"."""

        def need(length: int) -> None:
            if len(data) < length:
                text = f"VCS information needs {length} bytes, got {len(data)}"
                raise ProtocolError(text, frame=data, code="short", offset=len(data))

        need(4)
        found, at = [], 4
        for _ in range(data[0]):
            need(at + 4)
            vcs, state, upstream, total = data[at : at + 4]
            count = min(request.vppb_limit, max(0, total - request.first_vppb))
            at += 4
            need(at + 4 * count)
            listed = tuple(Vppb.from_bytes(data[at + 4 * n : at + 4 * n + 4]) for n in range(count))
            at += 4 * count
            found.append(
                VcsInfo(vcs=vcs, state=state, upstream_port=upstream, vppbs=total, listed=listed)
            )
        return cls(vcs=tuple(found))

    def to_bytes(self) -> bytes:
        """Raises `ValueError` for values out of range."""
        out = bytearray([len(self.vcs), 0, 0, 0])
        for entry in self.vcs:
            out += bytes([entry.vcs, entry.state, entry.upstream_port, entry.vppbs])
            out += b"".join(vppb.to_bytes() for vppb in entry.listed)
        return bytes(out)


@dataclass(frozen=True, slots=True, kw_only=True)
class BindRequest(Layout):
    """Request of 5201h, 7.6.7.2.2. Done in the background; an event tells the end."""

    vcs: int
    vppb: int
    port: int
    ld: int = NO_LD

    WIRE: ClassVar[Wire] = cs.Struct(
        "vcs" / cs.Int8ul,
        "vppb" / cs.Int8ul,
        "port" / cs.Int8ul,
        "reserved" / reserved(1),
        "ld" / cs.Int16ul,
        cs.Terminated,
    )


class UnbindOption(IntEnum):
    """7.6.7.2.3, table 7-34: how the host is told."""

    WAIT_LINK_DOWN = 0  # wait for the port's link to go down
    MANAGED_HOT_REMOVE = 1
    SURPRISE_HOT_REMOVE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class UnbindRequest(Layout):
    """Request of 5202h, 7.6.7.2.3. Done in the background; an event tells the end."""

    vcs: int
    vppb: int
    option: UnbindOption | int = UnbindOption.WAIT_LINK_DOWN

    WIRE: ClassVar[Wire] = cs.Struct(
        "vcs" / cs.Int8ul,
        "vppb" / cs.Int8ul,
        "option" / member(UnbindOption, _LOW4),
        cs.Terminated,
    )


class TunnelTarget(IntEnum):
    """7.6.7.3.1"""

    PORT_OR_LD = 0
    LD_POOL = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelRequest(Layout):
    """Request of 5300h, 7.6.7.3.1: a whole CCI message for what hangs on a port."""

    port_or_ld: int
    target: TunnelTarget | int = TunnelTarget.PORT_OR_LD
    command: bytes  # a CciMessage's bytes

    WIRE: ClassVar[Wire] = cs.Struct(
        "port_or_ld" / cs.Int8ul,
        "target" / member(TunnelTarget, _LOW4),
        "command" / cs.Prefixed(cs.Int16ul, cs.GreedyBytes),
        cs.Terminated,
    )

    @property
    def message(self) -> CciMessage:
        """Raises `ProtocolError` for bytes that are no CCI message."""
        return CciMessage.from_bytes(self.command)


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelResponse(Layout):
    """Answer of 5300h, 7.6.7.3.1: the answer of what hangs on the port."""

    command: bytes
    extra: bytes = b""

    WIRE: ClassVar[Wire] = cs.Struct(
        "length" / cs.Rebuild(cs.Int16ul, lambda context: len(context.command)),
        "reserved" / reserved(2),
        "command" / cs.Bytes(cs.this.length),
        "extra" / cs.GreedyBytes,
    )

    @property
    def message(self) -> CciMessage:
        """Raises `ProtocolError` for bytes that are no CCI message."""
        return CciMessage.from_bytes(self.command)
