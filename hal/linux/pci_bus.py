"""`hal.pci_ports.PciBus` of a Linux host: scan, slots, binding, and what happens.

Events come from two places. Uevents of the subsystem "pci" tell additions, removals, drivers, and
how error recovery went (ERROR_EVENT, drivers/pci/pci-driver.c: pci_uevent_ers). AER counts, links
and slots are not announced by Linux 6.1, so they are looked at every `poll_ms` and the differences
told. That look is a scan (some 0.2 ms a function), so it runs on a worker.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from hal.errors import HalError, Refused
from hal.linux import pci_sysfs
from hal.linux.pci_bind import PciBinder
from hal.linux.uevents import Uevent, Uevents
from hal.linux.workers import Check, Workers
from hal.pci_ports import AerCounts, PciAddress, PciDevice, PciEvent, PciEventKind, PciSlot
from hal.ports import Done, Reactor

POLL_MS: Final = 1000
_MS: Final = 1_000_000
LOOKS_LIMIT: Final = 4  # looks that wait; more are refused
LOOK_DEADLINE_MS: Final = 10_000  # sysfs waits for a driver that holds the device's lock
_Look: TypeAlias = tuple[Sequence[PciDevice], Sequence[PciSlot]]
_ACTIONS: Final = {
    "add": PciEventKind.ADDED,
    "remove": PciEventKind.REMOVED,
    "bind": PciEventKind.BOUND,
    "unbind": PciEventKind.BOUND,
}
_RECOVERY: Final = {  # enum pci_ers_result as words of ERROR_EVENT
    "BEGIN_RECOVERY": PciEventKind.RECOVERING,
    "SUCCESSFUL_RECOVERY": PciEventKind.RECOVERED,
    "FAILED_RECOVERY": PciEventKind.LOST,
}


class LinuxPciBus:
    """Loop thread only; binding that is submitted runs on one worker."""

    def __init__(
        self, reactor: Reactor, *, sys: Path = Path("/sys"), poll_ms: int = POLL_MS
    ) -> None:
        self._reactor, self._sys = reactor, sys
        self._poll_ns = poll_ms * _MS
        self._binder = PciBinder(sys)
        self._workers: Workers | None = None  # binds
        self._looker: Workers | None = None
        self._call: Callable[[PciEvent], None] | None = None
        self._uevents: Uevents | None = None
        self._cancel_poll: Callable[[], None] = lambda: None
        self._devices: dict[PciAddress, PciDevice] = {}  # as the last look found them
        self._slots: dict[str, PciSlot] = {}

    def scan(self) -> Sequence[PciDevice]:
        return pci_sysfs.scan(self._sys)

    def slots(self) -> Sequence[PciSlot]:
        return pci_sysfs.slots_of(self._sys)

    def submit_scan(self, deadline_ns: int, done: Done[Sequence[PciDevice]]) -> None:
        def job(_check: Check) -> Sequence[PciDevice]:
            return self.scan()

        self._look_worker().submit("a scan of PCI", job, deadline_ns, done)

    def config(self, address: PciAddress) -> bytes:
        return pci_sysfs.config(self._sys, address)

    def power_slot(self, name: str, on: bool) -> None:
        pci_sysfs.power_slot(self._sys, name, on)

    def on_event(self, call: Callable[[PciEvent], None]) -> None:
        """Raises Unavailable when the kernel gives no socket for uevents."""
        first, self._call = self._call is None, call
        if not first:
            return
        self._uevents = Uevents(self._reactor, "pci", self._announced, self._overflow)
        self._devices = {d.address: d for d in self.scan()}
        self._slots = {s.name: s for s in self.slots()}
        self._plan()

    def bind(self, address: PciAddress, driver: str) -> None:
        self._binder.bind(address, driver)

    def submit_bind(
        self, address: PciAddress, driver: str, deadline_ns: int, done: Done[None]
    ) -> None:
        def job(_check: Check) -> None:
            self._binder.bind(address, driver)

        self._worker().submit(f"binding {address} to {driver}", job, deadline_ns, done)

    def submit_restore(self, deadline_ns: int, done: Done[None]) -> None:
        """`restore`, off the loop's thread."""

        def job(_check: Check) -> None:
            self._binder.restore()

        self._worker().submit("giving PCI functions back", job, deadline_ns, done)

    def restore(self) -> None:
        self._binder.restore()

    def close(self) -> None:
        self._cancel_poll()
        self._call = None
        if self._uevents is not None:
            self._uevents.close()
            self._uevents = None
        for workers in (self._workers, self._looker):
            if workers is not None:
                workers.close()
        self._workers = self._looker = None

    # --- events ---

    def _announced(self, uevent: Uevent) -> None:
        name = uevent.values.get("PCI_SLOT_NAME", "")
        try:
            address = PciAddress.parse(name)
        except Refused:
            return  # a bus or a port service, no function
        text = uevent.values.get("DRIVER", "")
        kind = _ACTIONS.get(uevent.action)
        recovery = uevent.values.get("ERROR_EVENT")
        if uevent.action == "change" and recovery is not None:
            kind, text = _RECOVERY.get(recovery, PciEventKind.LOST), recovery
        if kind is PciEventKind.REMOVED:
            self._devices.pop(address, None)
        if kind is not None:
            self._tell(PciEvent(kind=kind, address=address, slot=self._slot(address), text=text))

    def _overflow(self) -> None:
        self._tell(PciEvent(kind=PciEventKind.OVERFLOW, address=None, text="uevents were lost"))

    def _plan(self) -> None:
        when_ns = self._reactor.now_ns() + self._poll_ns
        self._cancel_poll = self._reactor.call_at(when_ns, self._look)

    def _look(self) -> None:
        deadline_ns = self._reactor.now_ns() + LOOK_DEADLINE_MS * _MS
        self._look_worker().submit("looking at PCI", self._read, deadline_ns, self._seen)

    def _read(self, check: Check) -> _Look:
        devices = self.scan()
        check()
        return devices, self.slots()

    def _seen(self, found: _Look | HalError) -> None:
        if isinstance(found, HalError):
            self._tell(PciEvent(kind=PciEventKind.OVERFLOW, address=None, text=str(found)))
        else:
            devices = {d.address: d for d in found[0]}
            slots = {s.name: s for s in found[1]}
            for address, device in devices.items():
                before = self._devices.get(address)
                if before is not None:
                    self._compare(before, device)
            for name, slot in slots.items():
                known = self._slots.get(name)
                if known is not None and known != slot:
                    self._slot_changed(slot)
            self._devices, self._slots = devices, slots
        if self._call is not None:
            self._plan()

    def _compare(self, before: PciDevice, now: PciDevice) -> None:
        if before.link != now.link:
            self._tell(
                PciEvent(
                    kind=PciEventKind.LINK,
                    address=now.address,
                    slot=now.slot,
                    text=f"{_words(before)} -> {_words(now)}",
                )
            )
        old, new = before.aer or AerCounts(), now.aer or AerCounts()
        for kind, more in (
            (PciEventKind.AER_CORRECTABLE, new.correctable - old.correctable),
            (PciEventKind.AER_NONFATAL, new.nonfatal - old.nonfatal),
            (PciEventKind.AER_FATAL, new.fatal - old.fatal),
        ):
            if more > 0:
                event = PciEvent(kind=kind, address=now.address, slot=now.slot, count=more)
                self._tell(event)

    def _slot_changed(self, slot: PciSlot) -> None:
        text = f"powered {slot.powered}, present {slot.present}"
        self._tell(PciEvent(kind=PciEventKind.SLOT, address=None, slot=slot.name, text=text))

    def _slot(self, address: PciAddress) -> str:
        here = (address.domain, address.bus, address.device)
        names = (s.name for s in self._slots.values() if (s.domain, s.bus, s.device) == here)
        return next(names, "")

    def _tell(self, event: PciEvent) -> None:
        if self._call is not None:
            self._call(event)

    def _look_worker(self) -> Workers:
        if self._looker is None:
            self._looker = Workers(self._reactor, threads=1, waiting_limit=LOOKS_LIMIT)
        return self._looker

    def _worker(self) -> Workers:
        if self._workers is None:
            self._workers = Workers(self._reactor, threads=1)
        return self._workers


def _words(device: PciDevice) -> str:
    link = device.link
    return f"{link.speed_mts} MT/s x{link.width}" if link is not None else "no link"
