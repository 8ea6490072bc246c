"""Config space of a PCI Express function: header, capabilities, and those that we understand.

config.py      the header and the chains      express.py     links, slots, ports
interrupts.py  MSI, MSI-X                     errors.py      AER, DPC
extended.py    SR-IOV, DOE, DVSEC, CXL        bits.py        registers as layouts
"""

from dataclasses import dataclass

from protocol.pcie.config import Capability, Header, parse_header, walk
from protocol.pcie.errors import AER_ID, DPC_ID, Aer, Dpc, parse_aer, parse_dpc
from protocol.pcie.express import CAPABILITY_ID, Express, ExpressLink, ExpressSlot, PortType
from protocol.pcie.express import parse_express as parse_express
from protocol.pcie.extended import (
    DOE_ID,
    DVSEC_ID,
    SRIOV_ID,
    CxlDevice,
    CxlDvsec,
    Doe,
    Dvsec,
    Sriov,
    parse_cxl_device,
    parse_doe,
    parse_dvsec,
    parse_sriov,
)
from protocol.pcie.interrupts import MSI_ID, MSIX_ID, Msi, Msix, parse_msi, parse_msix

__all__ = [
    "Aer",
    "Capability",
    "CxlDevice",
    "CxlDvsec",
    "Doe",
    "Dpc",
    "Dvsec",
    "Express",
    "ExpressLink",
    "ExpressSlot",
    "Function",
    "Header",
    "Msi",
    "Msix",
    "PortType",
    "Sriov",
    "parse_function",
    "parse_header",
    "walk",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """One function's config space, as much of it as was read and as we understand; the rest is
    in `capabilities`."""

    header: Header
    capabilities: tuple[Capability, ...]
    express: Express | None = None
    msi: Msi | None = None
    msix: Msix | None = None
    aer: Aer | None = None
    dpc: Dpc | None = None
    sriov: Sriov | None = None
    does: tuple[Doe, ...] = ()
    dvsecs: tuple[Dvsec, ...] = ()
    cxl: CxlDevice | None = None


def parse_function(config: bytes) -> Function:
    """Raises ProtocolError: "short", "all_ones", "bad_header_type", "bad_chain"."""
    chain = walk(config)
    plain = {c.id: c for c in reversed(chain) if not c.extended}  # the first of each counts
    extended = {c.id: c for c in reversed(chain) if c.extended}
    dvsecs = tuple(parse_dvsec(c) for c in chain if c.extended and c.id == DVSEC_ID)
    devices = [parse_cxl_device(d) for d in dvsecs if d.cxl == CxlDvsec.DEVICE]
    return Function(
        header=parse_header(config),
        capabilities=chain,
        express=parse_express(plain[CAPABILITY_ID]) if CAPABILITY_ID in plain else None,
        msi=parse_msi(plain[MSI_ID]) if MSI_ID in plain else None,
        msix=parse_msix(plain[MSIX_ID]) if MSIX_ID in plain else None,
        aer=parse_aer(extended[AER_ID]) if AER_ID in extended else None,
        dpc=parse_dpc(extended[DPC_ID]) if DPC_ID in extended else None,
        sriov=parse_sriov(extended[SRIOV_ID]) if SRIOV_ID in extended else None,
        does=tuple(parse_doe(c) for c in chain if c.extended and c.id == DOE_ID),
        dvsecs=dvsecs,
        cxl=devices[0] if devices else None,
    )
