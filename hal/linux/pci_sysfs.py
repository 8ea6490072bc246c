"""What the kernel knows about PCI functions and slots, read from sysfs.

Ref: Documentation/ABI/testing/sysfs-bus-pci, sysfs-bus-pci-devices-aer_stats and
Documentation/PCI/sysfs-pci.rst of Linux 6.1; slots: drivers/pci/slot.c, pci_hotplug_core.c.

A device may go while it is read: then it is not in the scan. A value that can't be read or makes
no sense is taken as absent, because sysfs holds what some driver or firmware has put there.
"""

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hal.errors import Absent, HalError, Refused
from hal.linux.oserror import hal_error
from hal.pci_ports import CONFIG_BYTES, AerCounts, PciAddress, PciDevice, PciLink, PciSlot

DEVICES: Final = "bus/pci/devices"
SLOTS: Final = "bus/pci/slots"
READ_LIMIT_BYTES: Final = 4096
_SPEED: Final = re.compile(r"([0-9]{1,3})(?:\.([0-9]))? GT/s")  # "32.0 GT/s PCIe", "Unknown"
_HEX: Final = re.compile(r"(?:0x)?[0-9a-fA-F]{1,16}")
_SLOT_AT: Final = re.compile(r"([0-9a-f]{4,8}):([0-9a-f]{2}):([0-9a-f]{2})")
_SLOT_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_BARS: Final = 6
_UNKNOWN_WIDTH: Final = 0xFF  # PCI_EXP_LNKSTA of a port without a link reads as this or 0


def scan(sys: Path) -> Sequence[PciDevice]:
    """All functions, in the order of their addresses. Raises Unavailable without PCI."""
    folder = sys / DEVICES
    try:
        names = os.listdir(folder)
    except OSError as exc:
        raise hal_error(exc, f"{folder} (has this host no PCI?)") from exc
    slots = {(s.domain, s.bus, s.device): s.name for s in slots_of(sys)}
    found = (device_at(sys, name, slots) for name in names)
    return sorted((d for d in found if d is not None), key=lambda d: d.address)


def device_at(sys: Path, name: str, slots: dict[tuple[int, int, int], str]) -> PciDevice | None:
    """One function; None if it is gone by now or its name is no address."""
    try:
        address = PciAddress.parse(name)
    except Refused:
        return None
    folder = sys / DEVICES / name
    vendor, device = _number(folder / "vendor"), _number(folder / "device")
    class_code = _number(folder / "class")
    if vendor is None or device is None or class_code is None:
        return None
    group = _link_name(folder / "iommu_group")
    node = _decimal(folder / "numa_node")
    return PciDevice(
        address=address,
        vendor_id=vendor,
        device_id=device,
        subsystem_vendor_id=_number(folder / "subsystem_vendor") or 0,
        subsystem_device_id=_number(folder / "subsystem_device") or 0,
        class_code=class_code,
        revision=_number(folder / "revision") or 0,
        driver=_link_name(folder / "driver"),
        iommu_group=int(group) if group.isdecimal() else None,
        numa_node=node if node is not None and node >= 0 else None,
        parent=_parent(folder),
        link=_link(folder),
        slot=slots.get((address.domain, address.bus, address.device), ""),
        bar_bytes=_bars(folder),
        aer=_aer(folder),
    )


def config(sys: Path, address: PciAddress) -> bytes:
    """All of its config space that we may read: 64 B without CAP_SYS_ADMIN, else 256 or 4096."""
    path = sys / DEVICES / str(address) / "config"
    try:
        with path.open("rb") as file:
            return file.read(CONFIG_BYTES)
    except FileNotFoundError as exc:
        raise Absent(f"{address}: no such PCI function") from exc
    except OSError as exc:
        raise hal_error(exc, f"{address}: config space") from exc


def slots_of(sys: Path) -> Sequence[PciSlot]:
    """All hot-plug slots that some driver (pciehp, ACPI) has registered."""
    folder = sys / SLOTS
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise hal_error(exc, str(folder)) from exc
    found = []
    for name in names:
        where = _SLOT_AT.fullmatch(_text(folder / name / "address"))
        if where is None:
            continue
        powered, present = _decimal(folder / name / "power"), _decimal(folder / name / "adapter")
        found.append(
            PciSlot(
                name=name,
                domain=int(where[1], 16),
                bus=int(where[2], 16),
                device=int(where[3], 16),
                powered=None if powered is None else bool(powered),
                present=None if present is None else bool(present),
                speed_text=_text(folder / name / "cur_bus_speed"),
            )
        )
    return found


def power_slot(sys: Path, name: str, on: bool) -> None:
    """Ask the slot's driver; it answers when the power has changed. Raises Absent, Unavailable."""
    if not _SLOT_NAME.fullmatch(name):
        raise Refused(f"slot {name[:64]!r}: no name of a slot")
    folder = sys / SLOTS / name
    if not folder.is_dir():
        known = ", ".join(s.name for s in slots_of(sys)) or "none"
        raise Absent(f"slot {name!r}: no such slot; known: {known}")
    try:
        (folder / "power").write_text("1" if on else "0")
    except OSError as exc:
        if exc.errno in (errno.ENODEV, errno.EINVAL) and _decimal(folder / "power") == int(on):
            return  # pciehp refuses to do what is so already
        raise hal_error(exc, f"slot {name}: power {'on' if on else 'off'}") from exc


def _text(path: Path) -> str:
    """The file's one line, "" when it isn't there or can't be read now."""
    try:
        with path.open("rb") as file:
            return file.read(READ_LIMIT_BYTES).decode("ascii", "replace").strip()
    except OSError:  # gone, or the device is in a state in which its driver gives no answer
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text, 16) if _HEX.fullmatch(text) else None


def _decimal(path: Path) -> int | None:
    text = _text(path)
    return int(text) if re.fullmatch(r"-?[0-9]{1,10}", text) else None


def _link_name(path: Path) -> str:
    try:
        return os.path.basename(os.readlink(path))
    except OSError:
        return ""


def _parent(folder: Path) -> PciAddress | None:
    """The bridge above: the folder that the device's real folder is in."""
    above = os.path.basename(os.path.dirname(os.path.realpath(folder)))
    try:
        return PciAddress.parse(above)
    except HalError:
        return None  # "pci0000:00": a root bus


def _link(folder: Path) -> PciLink | None:
    most = _speed(_text(folder / "max_link_speed"))
    if not most:
        return None
    width = max(0, _decimal(folder / "current_link_width") or 0)
    return PciLink(
        speed_mts=_speed(_text(folder / "current_link_speed")),
        width=0 if width == _UNKNOWN_WIDTH else width,
        max_speed_mts=most,
        max_width=max(0, _decimal(folder / "max_link_width") or 0),
    )


def _speed(text: str) -> int:
    """In MT/s; 0 for a speed that the kernel doesn't know (no link)."""
    found = _SPEED.match(text)
    return int(found[1]) * 1000 + int(found[2] or "0") * 100 if found else 0


def _bars(folder: Path) -> tuple[int, ...]:
    """`resource`: a line a BAR, first and last address and flags; zeros for none."""
    sizes = []
    for line in _text(folder / "resource").splitlines()[:_BARS]:
        parts = line.split()[:2]
        first, last = 0, 0
        if len(parts) == 2 and all(map(_HEX.fullmatch, parts)):
            first, last = (int(part, 16) for part in parts)
        sizes.append(last - first + 1 if last > first else 0)
    return tuple(sizes)


def _aer(folder: Path) -> AerCounts | None:
    """The lines "TOTAL_ERR_COR n", "TOTAL_ERR_NONFATAL n", "TOTAL_ERR_FATAL n"."""
    counts = {}
    for kind in ("correctable", "nonfatal", "fatal"):
        text = _text(folder / f"aer_dev_{kind}")
        total = re.search(r"^TOTAL_ERR_[A-Z]+ ([0-9]{1,18})$", text, re.MULTILINE)
        if total is None:
            return None
        counts[kind] = int(total[1])
    return AerCounts(**counts)
