"""Which driver has a PCI function: given to one by `driver_override`, given back at the end.

Ref: Documentation/ABI/testing/sysfs-bus-pci (driver_override, unbind, drivers_probe). With an
override only the driver of that name may bind, so no other takes the function when it is probed
again. A function that is removed takes its override along: one that comes back is as new.

Blocks for as long as the drivers take to let go and to probe (an NVMe: seconds), so on a loop it
runs on a worker.
"""

import contextlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hal.errors import Absent, HalError, Refused, Unavailable
from hal.linux.oserror import hal_error
from hal.linux.pci_sysfs import DEVICES
from hal.pci_ports import PciAddress

# A function is announced, and is in sysfs, a little before the kernel lets a driver match it
# (drivers/pci/bus.c, pci_bus_add_device: match_driver), so that an early probe finds none.
PROBES: Final = 20
PROBE_WAIT_S: Final = 0.05
_DRIVER: Final = re.compile(r"[A-Za-z0-9_-]{1,63}")
_NO_OVERRIDE: Final = "(null)"  # how the kernel prints that there is none
_CLEAR: Final = "\n"  # and how it is told so


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """How a function was when we first took it."""

    driver: str
    override: str


class PciBinder:
    """Remembers what it changed. One thread at a time."""

    def __init__(self, sys: Path = Path("/sys")) -> None:
        self._sys = sys
        self._before: dict[PciAddress, Before] = {}  # at most one a function of the host

    @property
    def taken(self) -> dict[PciAddress, Before]:
        """What `restore` would give back."""
        return dict(self._before)

    def bind(self, address: PciAddress, driver: str) -> None:
        """Raises Absent (no such function), Unavailable (no driver, permission, it refused)."""
        if not _DRIVER.fullmatch(driver):
            raise Refused(f"driver {driver[:63]!r}: no name of a driver")
        now = self._read(address)
        if now.driver == driver:
            return
        if not (self._sys / "bus/pci/drivers" / driver).is_dir():
            raise Unavailable(f"{address}: no driver {driver} in this kernel: modprobe {driver}")
        self._before.setdefault(address, now)
        self._write(address, f"{DEVICES}/{address}/driver_override", driver)
        if now.driver:
            self._write(address, f"{DEVICES}/{address}/driver/unbind", str(address))
        for attempt in range(PROBES):
            if attempt:
                time.sleep(PROBE_WAIT_S)
            self._write(address, "bus/pci/drivers_probe", str(address))
            if self._read(address).driver == driver:
                return
        with contextlib.suppress(HalError):
            self._give_back(address)
        raise Unavailable(
            f"{address}: {driver} did not take it (its probe failed: see the kernel's log); it is "
            f"with {self._driver_now(address) or 'no driver'} again"
        )

    def restore(self) -> None:
        """Give everything back; goes on after a failure and raises the first one at the end."""
        first: HalError | None = None
        for address in sorted(self._before):
            try:
                self._give_back(address)
            except Absent:  # it was removed, and its override with it
                self._before.pop(address, None)
            except HalError as exc:
                first = first or exc
        if first is not None:
            raise first

    def _give_back(self, address: PciAddress) -> None:
        before, now = self._before[address], self._read(address)
        self._write(address, f"{DEVICES}/{address}/driver_override", before.override or _CLEAR)
        if now.driver != before.driver:
            if now.driver:
                self._write(address, f"{DEVICES}/{address}/driver/unbind", str(address))
            if before.driver:
                self._write(address, "bus/pci/drivers_probe", str(address))
        del self._before[address]

    def _read(self, address: PciAddress) -> Before:
        folder = self._sys / DEVICES / str(address)
        if not folder.is_dir():
            raise Absent(f"{address}: no such PCI function")
        try:
            override = (folder / "driver_override").read_text().strip()
        except OSError as exc:
            raise hal_error(exc, f"{address}: driver_override") from exc
        return Before(
            driver=self._driver_now(address), override="" if override == _NO_OVERRIDE else override
        )

    def _driver_now(self, address: PciAddress) -> str:
        try:
            return os.path.basename(os.readlink(self._sys / DEVICES / str(address) / "driver"))
        except OSError:
            return ""

    def _write(self, address: PciAddress, path: str, text: str) -> None:
        try:
            with (self._sys / path).open("w") as file:
                file.write(text)
        except PermissionError as exc:
            raise Unavailable(f"{address}: {path}: permission denied; binding needs root") from exc
        except OSError as exc:
            raise hal_error(exc, f"{address}: writing {text.strip()!r} to {path}") from exc
