"""SR-IOV, DOE and designated vendor-specific capabilities, those of CXL among them.

Ref: PCI Express Base Specification 5.0, 7.9.6 (DVSEC, 0023h); Single Root I/O Virtualization 1.1,
3.3 (0010h); Data Object Exchange ECN, 7.9.xx (002Eh); CXL 3.0, 8.1 (DVSECs of vendor 1E98h).
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import construct as cs

from protocol.pcie.bits import register
from protocol.pcie.config import Capability, parse_wire

SRIOV_ID: Final = 0x0010
DVSEC_ID: Final = 0x0023
DOE_ID: Final = 0x002E
CXL_VENDOR: Final = 0x1E98

SRIOV_WIRE: Final = cs.Struct(
    "header" / cs.Int32ul,
    "capabilities" / cs.Int32ul,  # 04h
    "control" / register(2, "-:15 vf_enable"),  # 08h
    "status" / cs.Int16ul,
    "initial_vfs" / cs.Int16ul,  # 0Ch
    "total_vfs" / cs.Int16ul,
    "num_vfs" / cs.Int16ul,  # 10h
    "link" / cs.Int16ul,
    "first_offset" / cs.Int16ul,  # 14h
    "stride" / cs.Int16ul,
    "reserved" / cs.Int16ul,
    "vf_device_id" / cs.Int16ul,  # 1Ah
)
DOE_WIRE: Final = cs.Struct(
    "header" / cs.Int32ul,
    "capabilities" / register(4, "-:20 vector:11 interrupt"),  # 04h
    "control" / cs.Int32ul,
    "status" / register(4, "ready -:28 error interrupt busy"),
)
DVSEC_WIRE: Final = cs.Struct(
    "header" / cs.Int32ul,
    "header1" / register(4, "length:12 revision:4 vendor:16"),  # 04h
    "id" / cs.Int16ul,  # 08h
)
CXL_DEVICE_WIRE: Final = cs.Struct(  # CXL 3.0, 8.1.3, from the end of the DVSEC's header
    "capability"
    / register(  # 8.1.3.1, 0Ah
        2,
        "viral pm_init multiple_logical - clear reset_timeout:3 reset cache_writeback "
        "hdm_count:2 hw_init mem io cache",
    ),
    "control" / register(2, "-:13 mem io cache"),  # 8.1.3.2, 0Ch
)


class CxlDvsec(IntEnum):
    """CXL 3.0, table 8-2."""

    DEVICE = 0
    NON_CXL_FUNCTION_MAP = 2
    EXTENSIONS = 3
    PORT_GPF = 4
    DEVICE_GPF = 5
    FLEX_BUS_PORT = 7
    REGISTER_LOCATOR = 8
    MLD = 9
    TEST = 0xA


@dataclass(frozen=True, slots=True, kw_only=True)
class Sriov:
    enabled: bool
    initial_vfs: int
    total_vfs: int
    num_vfs: int
    vf_offset: int  # in requester ids, from the function itself
    vf_stride: int
    vf_device_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Doe:
    """A mailbox in config space."""

    interrupt: bool  # it can tell by one
    vector: int
    busy: bool
    error: bool
    ready: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Dvsec:
    """`data` are its bytes behind the header, at most its length."""

    vendor_id: int
    revision: int
    id: int
    length: int
    data: bytes

    @property
    def cxl(self) -> int | None:
        """A CxlDvsec, or a number that this layout doesn't know; None of another vendor."""
        if self.vendor_id != CXL_VENDOR:
            return None
        try:
            return CxlDvsec(self.id)
        except ValueError:
            return self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class CxlDevice:
    """What a CXL device can do, and what is switched on."""

    cache: bool
    io: bool
    mem: bool
    hdm_ranges: int
    cache_enabled: bool
    mem_enabled: bool


def parse_sriov(capability: Capability) -> Sriov:
    """Raises ProtocolError."""
    raw = parse_wire(SRIOV_WIRE, capability, "SR-IOV capability")
    return Sriov(
        enabled=raw.control.vf_enable,
        initial_vfs=raw.initial_vfs,
        total_vfs=raw.total_vfs,
        num_vfs=raw.num_vfs,
        vf_offset=raw.first_offset,
        vf_stride=raw.stride,
        vf_device_id=raw.vf_device_id,
    )


def parse_doe(capability: Capability) -> Doe:
    """Raises ProtocolError."""
    raw = parse_wire(DOE_WIRE, capability, "DOE capability")
    return Doe(
        interrupt=raw.capabilities.interrupt,
        vector=raw.capabilities.vector,
        busy=raw.status.busy,
        error=raw.status.error,
        ready=raw.status.ready,
    )


def parse_dvsec(capability: Capability) -> Dvsec:
    """Raises ProtocolError."""
    raw = parse_wire(DVSEC_WIRE, capability, "DVSEC")
    head = DVSEC_WIRE.sizeof()
    return Dvsec(
        vendor_id=raw.header1.vendor,
        revision=raw.header1.revision,
        id=raw.id,
        length=raw.header1.length,
        data=capability.data[head : raw.header1.length],
    )


def parse_cxl_device(dvsec: Dvsec) -> CxlDevice:
    """Of a DVSEC whose `cxl` is DEVICE. Raises ProtocolError."""
    whole = Capability(id=DVSEC_ID, offset=0, extended=True, version=0, data=dvsec.data)
    raw = parse_wire(CXL_DEVICE_WIRE, whole, "CXL device DVSEC")
    return CxlDevice(
        cache=raw.capability.cache,
        io=raw.capability.io,
        mem=raw.capability.mem,
        hdm_ranges=raw.capability.hdm_count,
        cache_enabled=raw.control.cache,
        mem_enabled=raw.control.mem,
    )
