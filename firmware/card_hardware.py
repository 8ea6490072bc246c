"""What the card watches besides its modules: sensors on SMBus, the slots' PCIe links, CXL devices.

Each is there where the board has it and the host offers it; none of them decides anything. What is
found is told by events and shown by `apf status`. The rooms behind them (drivers, config space,
event records) are imported where they are used: most boards of a test bench have none of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from firmware.board_types import Board
from firmware.events import EventCode, EventLog
from firmware.inventory import Cnm, Inventory
from firmware.loop import Loop
from hal.cxl_ports import CxlBus, CxlMemdev
from hal.errors import HalError
from hal.pci_ports import PciBus
from hal.smbus_ports import SmbusSegment

if TYPE_CHECKING:
    from firmware.cxl_watch import CxlWatch
    from firmware.pcie import LinkReport, SlotLinks
    from firmware.sensors.monitor import SensorMonitor


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwarePorts:
    """What the host offers of it."""

    smbus: Callable[[str], SmbusSegment] | None = None  # opens a segment by its spec string
    pci: PciBus | None = None
    cxl: CxlBus | None = None
    memdev: Callable[[str], CxlMemdev] | None = None  # opens one by its name on that bus


class CardHardware:
    """Loop thread only."""

    def __init__(
        self,
        loop: Loop,
        board: Board,
        ports: HardwarePorts,
        inventory: Inventory,
        events: EventLog,
        *,
        on_gone: Callable[[Cnm], None],
    ) -> None:
        """`on_gone`: what was behind a module's slot has vanished from the bus."""
        self._loop = loop
        self._board = board
        self._ports = ports
        self._inventory = inventory
        self._events = events
        self._on_gone = on_gone
        self._sensors = self._sensor_monitor()
        self._links: SlotLinks | None = None  # of a board whose slots have PCIe ports
        self._cxl: CxlWatch | None = None  # of a host that may have memory devices

    def start(self) -> None:
        """Begin to watch; the modules are in the inventory."""
        self._watch_links()
        self._watch_cxl()
        if self._sensors is not None:
            self._sensors.start()

    def close(self) -> None:
        """Stop; twice is fine."""
        if self._sensors is not None:
            self._sensors.close()
        if self._links is not None:
            self._links.close()
        if self._cxl is not None:
            self._cxl.close()

    def status(self) -> Mapping[str, Any]:
        """For `apf status`: a list each, empty where there is nothing of it."""
        return {
            "sensors": self._sensors.to_json() if self._sensors is not None else [],
            "slot_links": [link.to_json() for link in self._links.links.values()]
            if self._links is not None
            else [],
            "cxl": self._cxl.status() if self._cxl is not None else [],
        }

    def _sensor_monitor(self) -> "SensorMonitor | None":
        """Of the board's SMBus, where it has one that can be opened."""
        hardware, open_segment = self._board.hardware, self._ports.smbus
        if open_segment is None or not hardware.segments:
            return None
        from firmware.sensors.monitor import SensorMonitor

        def is_on(name: str) -> bool:
            cnm = self._inventory.get(name)
            return cnm is not None and (cnm.power is None or cnm.power.power_good)

        return SensorMonitor(
            self._loop,
            open_segment,
            hardware,
            self._events,
            slot_devices={slot.id: slot.devices for slot in self._board.slots},
            is_on=is_on,
        )

    def _watch_links(self) -> None:
        """The links behind the slots' ports, where this host has a bus to watch."""
        wanted = {slot.id: slot.pcie for slot in self._board.slots if slot.pcie is not None}
        if self._ports.pci is None or not wanted:
            return
        from firmware.pcie import SlotLinks

        try:
            self._links = SlotLinks(
                self._loop,
                self._ports.pci,
                wanted,
                on_report=self._on_link_report,
                on_gone=self._on_function_gone,
            )
        except HalError as exc:
            self._events.emit(EventCode.SLOT_LINK, f"PCIe links are not watched: {exc}")

    def _on_link_report(self, report: "LinkReport") -> None:
        self._events.emit(
            EventCode.SLOT_LINK,
            f"{report.cnm}: {report.text}",
            cnm=report.cnm,
            data={"verdict": str(report.verdict), "count": report.count},
        )

    def _on_function_gone(self, name: str) -> None:
        cnm = self._inventory.get(name)
        if cnm is not None:
            self._on_gone(cnm)

    def _watch_cxl(self) -> None:
        """The host's memory devices: who they are, their health, what happened to them."""
        bus, open_memdev = self._ports.cxl, self._ports.memdev
        if bus is None or open_memdev is None:
            return
        from firmware.cxl_watch import CxlWatch

        def tell(name: str, code: str, text: str) -> None:
            data = {"memdev": name, "what": code}
            self._events.emit(EventCode.CXL_DEVICE, f"{name}: {text}", data=data)

        self._cxl = CxlWatch(bus, open_memdev, self._loop, tell=tell)
        self._cxl.start()
