"""The rows of PCI functions and buses: a model of edu, and QEMU's own where this host has one.

`make hil` boots a host that has one; elsewhere the Linux rows are skipped by name.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hal.errors import HalError
from hal.interrupt_rate import RateLimit
from hal.linux.pci_bus import LinuxPciBus
from hal.linux.vfio import VfioHost
from hal.mock.kernel import VirtualKernel
from hal.mock.pci import MockPciFunction
from hal.mock.pci_bus import MockPciBus, MockPort
from hal.mock.pci_edu import DEVICE_ID, VENDOR_ID, MockEdu
from hal.pci_ports import PciAddress, PciDevice, PciFunction
from hal.ports import Reactor
from tests.contract import rigs

STORM_LIMIT = RateLimit(per_s=200, burst=20)
DRIVER = "vfio-pci"
PORT_AT, EDU_AT, SPARE_AT = "0000:00:01.0", "0000:01:00.0", "0000:02:00.0"


def backends(port: str) -> list[Any]:
    """The Linux rows."""
    rows = {"pci_function": linux_function, "pci_bus": linux_bus}
    return [pytest.param(rows[port], id="linux-vfio")] if port in rows else []


def pci_function(tmp_path: Path, reactor: Reactor) -> rigs.PciFunctionRig:
    """The mock's row."""
    node = reactor.clock.node  # type: ignore[attr-defined]
    kernel: VirtualKernel = node.kernel
    model = kernel.pci.add(MockEdu(kernel, "edu", EDU_AT))

    def opened() -> PciFunction:
        made: PciFunction = MockPciFunction(node, model, STORM_LIMIT)
        return made

    return rigs.PciFunctionRig(
        function=opened(),
        open=opened,
        storm_limit=STORM_LIMIT,
        resets_registers=True,
        remove=model.remove,
        want_removed=model.eject,
    )


def pci_bus(tmp_path: Path, reactor: Reactor) -> rigs.PciBusRig:
    """The mock's row."""
    node = reactor.clock.node  # type: ignore[attr-defined]
    kernel: VirtualKernel = node.kernel
    port = kernel.pci.add(MockPort(kernel, "port", PORT_AT))
    edu = kernel.pci.add(MockEdu(kernel, "edu", EDU_AT))
    edu.parent, edu.driver = port.address, ""
    spare = MockEdu(kernel, "spare", SPARE_AT)

    def add() -> PciAddress:
        kernel.pci.add(spare)
        spare.insert()
        return spare.address

    return rigs.PciBusRig(
        bus=MockPciBus(node, kernel.pci),
        address=edu.address,
        driver=DRIVER,
        add=add,
        remove=spare.remove,
    )


def find_edus(bus: LinuxPciBus) -> list[PciDevice]:
    """Those behind a port first: they can be reset."""
    try:
        found = [d for d in bus.scan() if (d.vendor_id, d.device_id) == (VENDOR_ID, DEVICE_ID)]
    except HalError as exc:
        pytest.skip(str(exc))
    if not found:
        pytest.skip("this host has no edu device (1234:11e8); make hil boots one that has")
    return sorted(found, key=lambda device: device.parent is None)


def linux_function(tmp_path: Path, reactor: Reactor) -> rigs.PciFunctionRig:
    bus = LinuxPciBus(reactor)
    address = find_edus(bus)[0].address
    bus.bind(address, DRIVER)
    host = VfioHost(reactor, limit=STORM_LIMIT)
    held: list[PciFunction] = []

    def opened() -> PciFunction:
        held.append(host.open(address))
        return held[-1]

    return rigs.PciFunctionRig(
        function=opened(), open=opened, storm_limit=STORM_LIMIT, close=_closer(held, bus)
    )


def linux_bus(tmp_path: Path, reactor: Reactor) -> rigs.PciBusRig:
    bus = LinuxPciBus(reactor)
    address = find_edus(bus)[0].address
    return rigs.PciBusRig(bus=bus, address=address, driver=DRIVER, close=_closer([], bus))


def _closer(functions: list[PciFunction], bus: LinuxPciBus) -> Callable[[], None]:
    def close() -> None:
        for function in functions:
            function.close()
        bus.restore()
        bus.close()

    return close
