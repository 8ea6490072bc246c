"""Hello and capabilities. Specification: protocol/SPEC.md sections 4 and 6.

The layouts of HelloRequest, HelloReply and Refusal are frozen for ever, in every version: they are
what two ends of different versions use to find out that they differ.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final

from protocol.apf.fields import (
    HASH8,
    U8,
    U16,
    U32,
    U64,
    UUID,
    Body,
    Wire,
    enum8,
    layout,
    list8,
    name8,
    pair,
    record,
    str8,
)

VERSION_MIN: Final = 1  # the oldest version that this software still speaks
VERSION_CURRENT: Final = 1
SOFTWARE_MAX_BYTES: Final = 64
ACCELERATORS_MAX: Final = 16
RUNTIMES_MAX: Final = 8
LABELS_MAX: Final = 32


class Role(IntEnum):
    """Which endpoint of the CNM speaks on this link."""

    MC = 1
    AGENT = 2
    BOTH = 3


class BootState(IntEnum):
    OFF = 0
    STANDBY = 1
    BOOTING = 2
    READY = 3
    FAILED = 4


class Scope(IntEnum):
    """Where a device hangs: on the CNM itself or on the fabric."""

    LOCAL = 0
    FABRIC = 1


HELLO_REQUEST_WIRE: Final = layout(
    "card_uuid" / UUID,
    "epoch" / U64,
    "version_min" / U8,
    "version_current" / U8,
    "layout_hash" / HASH8,
    "software" / str8(SOFTWARE_MAX_BYTES),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HelloRequest(Body):
    OPCODE: ClassVar[int] = 0x0101
    WIRE: ClassVar[Wire] = HELLO_REQUEST_WIRE
    card_uuid: bytes
    epoch: int
    version_min: int
    version_current: int
    layout_hash: bytes
    software: str


HELLO_REPLY_WIRE: Final = layout(
    "cnm_uuid" / UUID,
    "boot_id" / UUID,
    "bound_card_uuid" / UUID,  # zeros: not bound yet
    "version_min" / U8,
    "version_current" / U8,
    "layout_hash" / HASH8,
    "role" / enum8(Role),
    "boot_state" / enum8(BootState),
    "software" / str8(SOFTWARE_MAX_BYTES),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HelloReply(Body):
    OPCODE: ClassVar[int] = 0x0101
    WIRE: ClassVar[Wire] = HELLO_REPLY_WIRE
    cnm_uuid: bytes
    boot_id: bytes
    bound_card_uuid: bytes
    version_min: int
    version_current: int
    layout_hash: bytes
    role: Role | int
    boot_state: BootState | int
    software: str


def common_version(
    version_min: int, version_current: int, own_min: int = VERSION_MIN, own: int = VERSION_CURRENT
) -> int | None:
    """The newest version that both windows hold, or None (SPEC 4.2)."""
    version = min(version_current, own)
    return version if version >= max(version_min, own_min) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    kind: str  # "gpu", "fpga", ...
    model: str
    count: int
    scope: Scope | int


ACCELERATOR_WIRE: Final = record(
    Accelerator,
    "kind" / name8(32),
    "model" / str8(64),
    "count" / U16,
    "scope" / enum8(Scope),
)

CAPABILITIES_REQUEST_WIRE: Final = layout()


@dataclass(frozen=True, slots=True, kw_only=True)
class CapabilitiesRequest(Body):
    OPCODE: ClassVar[int] = 0x0102
    WIRE: ClassVar[Wire] = CAPABILITIES_REQUEST_WIRE


CAPABILITIES_REPLY_WIRE: Final = layout(
    "arch" / name8(32),
    "cores_milli" / U32,
    "memory_bytes" / U64,
    "nvme_bytes" / U64,
    "link_mbit" / U32,
    "window_tx_bytes" / U32,
    "window_rx_bytes" / U32,
    "accelerators" / list8(ACCELERATOR_WIRE, ACCELERATORS_MAX),
    "runtimes" / list8(name8(32), RUNTIMES_MAX),
    "labels" / list8(pair(name8(64), str8(64)), LABELS_MAX),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CapabilitiesReply(Body):
    OPCODE: ClassVar[int] = 0x0102
    WIRE: ClassVar[Wire] = CAPABILITIES_REPLY_WIRE
    arch: str  # "amd64", "arm64", ...
    cores_milli: int
    memory_bytes: int
    nvme_bytes: int
    link_mbit: int
    window_tx_bytes: int
    window_rx_bytes: int
    accelerators: tuple[Accelerator, ...] = ()
    runtimes: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
