"""MSI and MSI-X. Ref: PCI Local Bus Specification 3.0, 6.8.1 and 6.8.2."""

from dataclasses import dataclass
from typing import Final

import construct as cs

from protocol.pcie.bits import register
from protocol.pcie.config import Capability, parse_wire

MSI_ID: Final = 0x05
MSIX_ID: Final = 0x11

MSI_WIRE: Final = cs.Struct(
    "header" / cs.Int16ul,
    "control"
    / register(  # 6.8.1.3
        2, "-:7 maskable wide enabled_log2:3 capable_log2:3 enable"
    ),
    "address" / cs.IfThenElse(cs.this.control.wide, cs.Int64ul, cs.Int32ul),
    "data" / cs.Int16ul,
)
MSIX_WIRE: Final = cs.Struct(
    "header" / cs.Int16ul,
    "control"
    / register(  # 6.8.2.3
        2, "enable mask_all -:3 size_less_one:11"
    ),
    "table" / register(4, "offset8:29 bar:3"),  # 6.8.2.4
    "pending" / register(4, "offset8:29 bar:3"),  # 6.8.2.5
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Msi:
    enabled: bool
    vectors: int  # that it can send
    vectors_enabled: int
    wide: bool  # a 64-bit address
    maskable: bool  # each vector for itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Msix:
    enabled: bool
    masked: bool
    vectors: int
    table_bar: int
    table_offset: int
    pending_bar: int
    pending_offset: int


def parse_msi(capability: Capability) -> Msi:
    """Raises ProtocolError."""
    control = parse_wire(MSI_WIRE, capability, "MSI capability").control
    return Msi(
        enabled=control.enable,
        vectors=1 << control.capable_log2,
        vectors_enabled=1 << control.enabled_log2,
        wide=control.wide,
        maskable=control.maskable,
    )


def parse_msix(capability: Capability) -> Msix:
    """Raises ProtocolError."""
    raw = parse_wire(MSIX_WIRE, capability, "MSI-X capability")
    return Msix(
        enabled=raw.control.enable,
        masked=raw.control.mask_all,
        vectors=raw.control.size_less_one + 1,
        table_bar=raw.table.bar,
        table_offset=raw.table.offset8 * 8,
        pending_bar=raw.pending.bar,
        pending_offset=raw.pending.offset8 * 8,
    )
