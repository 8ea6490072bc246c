"""The rows of the CXL suites. Linux's own is used in a virtual machine (tests/hil/cases/cxl.py):
it needs a real memory device, whose labels the suite writes and restores."""

from pathlib import Path

from hal.cxl_ports import CxlBus, CxlMemdev
from hal.mock.cxl import MockCxlBus, MockCxlMemdev
from hal.mock.cxl_device import MockCxlDevice
from hal.mock.node import Node
from hal.ports import Reactor
from tests.contract import rigs

LACKING = 0x4200  # QEMU 7.2's memory device has no health either
UNOFFERED = 0x7777


def cxl(tmp_path: Path, reactor: Reactor) -> rigs.CxlMemdevRig:
    """The mock's row."""
    node: Node = reactor.clock.node  # type: ignore[attr-defined]
    device = node.kernel.cxl.add_device(MockCxlDevice(node.kernel, "mem0"))
    device.lacks.add(0x4203)
    return rigs.CxlMemdevRig(
        memdev=MockCxlMemdev(node, node.kernel.cxl, device),
        lacking=0x4203,
        unoffered=UNOFFERED,
        takes_raw=True,
        has_health=True,
        add_event=lambda log: device.add_event(log, bytes(range(16)), b"evidence"),
        remove=device.remove,
    )


def cxl_bus(tmp_path: Path, reactor: Reactor) -> rigs.CxlBusRig:
    """The mock's row."""
    node: Node = reactor.clock.node  # type: ignore[attr-defined]
    host = node.kernel.cxl
    host.add_device(MockCxlDevice(node.kernel, "mem0"))
    host.add_region("region0", 1 << 20)
    return rigs.CxlBusRig(bus=MockCxlBus(host), memdev="mem0", region="region0")


def linux_rig(memdev: CxlMemdev) -> rigs.CxlMemdevRig:
    """In a virtual machine: QEMU's memory device behind the kernel's drivers."""
    return rigs.CxlMemdevRig(
        memdev=memdev,
        close=memdev.close,
        lacking=LACKING,
        unoffered=UNOFFERED,
        takes_raw=False,  # Debian's kernel is built without CONFIG_CXL_MEM_RAW_COMMANDS
        has_health=False,
        log_offset_bytes=4,
    )


def linux_bus_rig(bus: CxlBus, memdev: str) -> rigs.CxlBusRig:
    """In a virtual machine."""
    return rigs.CxlBusRig(bus=bus, memdev=memdev)
