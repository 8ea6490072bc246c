"""Advanced error reporting and downstream port containment.

Ref: PCI Express Base Specification 5.0, 7.8.4 (AER, extended id 0001h), 7.9.15 (DPC, 001Dh).
"""

from dataclasses import dataclass
from typing import Final

import construct as cs

from protocol.pcie.bits import register
from protocol.pcie.config import Capability, parse_wire

AER_ID: Final = 0x0001
DPC_ID: Final = 0x001D

UNCORRECTABLE: Final = {  # 7.8.4.2, bit -> name
    4: "data_link_protocol",
    5: "surprise_down",
    12: "poisoned_tlp",
    13: "flow_control",
    14: "completion_timeout",
    15: "completer_abort",
    16: "unexpected_completion",
    17: "receiver_overflow",
    18: "malformed_tlp",
    19: "ecrc",
    20: "unsupported_request",
    21: "acs_violation",
    22: "internal",
    23: "mc_blocked_tlp",
    24: "atomicop_blocked",
    25: "tlp_prefix_blocked",
    26: "poisoned_egress_blocked",
}
CORRECTABLE: Final = {  # 7.8.4.5
    0: "receiver",
    6: "bad_tlp",
    7: "bad_dllp",
    8: "replay_rollover",
    12: "replay_timeout",
    13: "advisory_nonfatal",
    14: "internal",
    15: "header_log_overflow",
}
AER_WIRE: Final = cs.Struct(
    "header" / cs.Int32ul,
    "uncorrectable_status" / cs.Int32ul,  # 04h
    "uncorrectable_mask" / cs.Int32ul,
    "uncorrectable_severity" / cs.Int32ul,  # 0Ch: a bit that is set is fatal
    "correctable_status" / cs.Int32ul,  # 10h
    "correctable_mask" / cs.Int32ul,
    "control" / register(4, "-:27 first:5"),  # 18h: First Error Pointer
    "header_log" / cs.Bytes(16),  # 1Ch
)
DPC_WIRE: Final = cs.Struct(
    "header" / cs.Int32ul,
    "capability" / cs.Int16ul,  # 04h
    "control" / register(2, "-:14 enable:2"),  # 06h: DPC Trigger Enable
    "status"
    / register(  # 7.9.15.4, 08h
        2, "-:3 pio_first:5 - extension:2 rp_busy interrupt reason:2 triggered"
    ),
    "source" / cs.Int16ul,  # 0Ah: requester id of ERR_NONFATAL and ERR_FATAL
)
DPC_REASONS: Final = ("unmasked_uncorrectable", "err_nonfatal", "err_fatal", "see_extension")


@dataclass(frozen=True, slots=True, kw_only=True)
class Aer:
    """Errors that were seen and not cleared, by name ("bit_27" where this layout has none)."""

    fatal: tuple[str, ...]
    nonfatal: tuple[str, ...]
    correctable: tuple[str, ...]
    first: str  # the uncorrectable one that the header log belongs to; "" for none
    header_log: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Dpc:
    """A port that cuts off what is below it when that goes wrong."""

    enabled: bool
    triggered: bool  # the link is held down now
    reason: str
    source_id: int  # requester id: bus 8, device 5, function 3 bits


def parse_aer(capability: Capability) -> Aer:
    """Raises ProtocolError."""
    raw = parse_wire(AER_WIRE, capability, "AER capability")
    status, fatal = raw.uncorrectable_status, raw.uncorrectable_severity
    pending = bool(status >> raw.control.first & 1)
    return Aer(
        fatal=_names(status & fatal, UNCORRECTABLE),
        nonfatal=_names(status & ~fatal, UNCORRECTABLE),
        correctable=_names(raw.correctable_status, CORRECTABLE),
        first=_name(raw.control.first, UNCORRECTABLE) if pending else "",
        header_log=raw.header_log,
    )


def parse_dpc(capability: Capability) -> Dpc:
    """Raises ProtocolError."""
    raw = parse_wire(DPC_WIRE, capability, "DPC capability")
    return Dpc(
        enabled=raw.control.enable != 0,
        triggered=raw.status.triggered,
        reason=DPC_REASONS[raw.status.reason] if raw.status.triggered else "",
        source_id=raw.source,
    )


def _names(bits: int, table: dict[int, str]) -> tuple[str, ...]:
    return tuple(_name(bit, table) for bit in range(32) if bits >> bit & 1)


def _name(bit: int, table: dict[int, str]) -> str:
    return table.get(bit, f"bit_{bit}")
