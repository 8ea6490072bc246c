"""What the kernel's CXL bus shows: memory devices, ports, decoders, regions.

Ref: Documentation/ABI/testing/sysfs-bus-cxl. Attributes that a kernel or device doesn't have are
read as their zero; a device that goes away while it is read is left out.
"""

import re
from pathlib import Path
from typing import Final

from hal.cxl_ports import (
    CxlDecoder,
    CxlInventory,
    CxlMemdevInfo,
    CxlPort,
    CxlRegion,
    DriverMissing,
)
from hal.errors import Absent, Unavailable
from hal.linux.pci_window import BarWindow, open_mapped_window

DEVICES: Final = Path("/sys/bus/cxl/devices")
DAX: Final = Path("/sys/bus/dax/devices")
DEV: Final = Path("/dev")
PCI: Final = Path("/sys/bus/pci/devices")
CLASS_CXL_MEMORY: Final = "0x050210"  # base class, subclass, interface: CXL 3.1, 8.1.12.1
PAYLOAD_DEFAULT_BYTES: Final = 256  # the smallest that a mailbox may have

_KIND: Final = re.compile(r"([a-z-]+?)([0-9.]+)")
_INTEGER: Final = re.compile(r"0x[0-9a-fA-F]{1,16}|[0-9]{1,20}")
_PCI_FUNCTION: Final = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_DECODER_KINDS: Final = {"root": "root", "port": "switch", "endpoint": "endpoint"}


class LinuxCxlBus:
    """The `CxlBus` port. `devices` and `dax` are other directories in tests."""

    def __init__(self, *, devices: Path = DEVICES, dax: Path = DAX, dev: Path = DEV) -> None:
        self._devices, self._dax, self._dev = devices, dax, dev

    def scan(self) -> CxlInventory:
        """Raises DriverMissing where the kernel has no CXL."""
        if not self._devices.is_dir():
            raise DriverMissing(
                f"{self._devices}: not there: this kernel has no CXL (CONFIG_CXL_BUS)"
            )
        found: dict[str, list[Path]] = {}
        for path in sorted(self._devices.iterdir(), key=_order):
            kind = _KIND.fullmatch(path.name)
            if kind is not None and path.exists():
                found.setdefault(kind[1], []).append(path)
        ports = [p for kind in _DECODER_KINDS for p in found.get(kind, [])]
        return CxlInventory(
            memdevs=tuple(memdev_info(path) for path in found.get("mem", [])),
            ports=tuple(_port(path) for path in ports),
            decoders=tuple(_decoder(path) for path in found.get("decoder", [])),
            regions=tuple(self._region(path) for path in found.get("region", [])),
        )

    def map_region(self, name: str, side: str) -> BarWindow:
        """By the region's dax device. Raises Absent, Unavailable, and what mapping raises."""
        regions = {region.name: region for region in self.scan().regions}
        region = regions.get(name)
        if region is None:
            known = ", ".join(regions) or "none"
            raise Absent(f"CXL region {name!r}: not there; there are: {known}")
        if not region.dax:
            state = "" if region.committed else " and its decoders are not committed"
            raise Unavailable(
                f"CXL region {name}: no dax device lies in it{state}, so nothing can map it; make "
                "one (a ram region: `daxctl create-device`; a pmem region: `ndctl "
                "create-namespace -m devdax`)"
            )
        return open_mapped_window(str(self._dev / region.dax[0]), "b" if side == "b" else "a")

    def _region(self, path: Path) -> CxlRegion:
        start, size = _number(path / "resource"), _number(path / "size")
        known = sorted(self._dax.iterdir(), key=_order) if self._dax.is_dir() else []
        inside = [
            path.name
            for path in known
            if size and start <= _number(path / "resource") < start + size
        ]
        uuid = _text(path / "uuid")
        return CxlRegion(
            name=path.name,
            start=start,
            size_bytes=size,
            mode=_text(path / "mode"),
            uuid="" if not uuid.strip("0-") else uuid,
            committed=_number(path / "commit") == 1,
            dax=tuple(inside),
        )


def memdev_info(path: Path) -> CxlMemdevInfo:
    """From one device's directory. Raises Unavailable when it is not there."""
    if not path.is_dir():
        raise Unavailable(f"{path}: no such memory device")
    serial = _number(path / "serial", none=-1)
    parent = path.resolve().parent.name
    driver = path / "driver"
    return CxlMemdevInfo(
        name=path.name,
        address=parent if _PCI_FUNCTION.fullmatch(parent) else "",
        serial=serial if serial >= 0 else None,
        firmware_version=_text(path / "firmware_version"),
        payload_max_bytes=_number(path / "payload_max") or PAYLOAD_DEFAULT_BYTES,
        volatile_bytes=_number(path / "ram" / "size"),
        persistent_bytes=_number(path / "pmem" / "size"),
        label_bytes=_number(path / "label_storage_size"),
        numa_node=_number(path / "numa_node", none=-1) if (path / "numa_node").exists() else None,
        driver=driver.resolve().name if driver.exists() else "",
    )


def memdev_at(address: str, devices: Path = DEVICES) -> str:
    """The name that the device at this PCI address has now: it gets another one each time that its
    driver is bound. Raises DriverMissing when there is none."""
    for path in sorted(devices.glob("mem*"), key=_order):
        if path.resolve().parent.name == address:
            return path.name
    raise DriverMissing(f"{address}: {_no_memdev(devices)}")


def why_no_memdev(name: str, devices: Path = DEVICES, dev: Path = Path("/dev/cxl")) -> str:
    """Why there is no device file of that name, and what to do."""
    what = f"{dev / name}: not there"
    if not devices.is_dir():
        return f"{what}: this kernel has no CXL (CONFIG_CXL_BUS), see {devices}"
    if (devices / name).exists():
        return f"{what}, though the kernel knows {name}: is /dev a devtmpfs, or udev still at work?"
    return f"{what}; {_no_memdev(devices)}"


def _no_memdev(devices: Path) -> str:
    waiting = [
        path.name
        for path in sorted(PCI.glob("*"))
        if _text(path / "class") == CLASS_CXL_MEMORY and not (path / "driver").exists()
    ]
    if waiting:
        return f"{waiting[0]} is a CXL memory device without a driver: modprobe cxl_pci, or bind it"
    known = ", ".join(path.name for path in sorted(devices.glob("mem*"), key=_order))
    if known:
        return f"there are: {known}"
    return "no CXL memory device on this host (modprobe cxl_acpi cxl_pci cxl_mem?)"


def _port(path: Path) -> CxlPort:
    """The device tree nests as the topology does: a port's directory is in its parent's."""
    real = path.resolve()
    parent = next((p.name for p in real.parents if _is_port(p.name)), "")
    targets = [
        f"{link.name.removeprefix('dport')}={link.resolve().name}"
        for link in sorted(real.glob("dport*"), key=_order)
    ]
    uport = real / "uport"
    return CxlPort(
        name=path.name,
        parent=parent,
        uport=uport.resolve().name if uport.exists() else "",
        targets=tuple(targets),
    )


def _decoder(path: Path) -> CxlDecoder:
    real = path.resolve()
    port = next((p.name for p in real.parents if _is_port(p.name)), "")
    kind = _KIND.fullmatch(port)
    mode = _text(real / "mode")
    if not mode:
        can = [cap for cap in ("ram", "pmem") if _number(real / f"cap_{cap}") == 1]
        mode = ",".join(can)
    return CxlDecoder(
        name=path.name,
        port=port,
        start=_number(real / "start"),
        size_bytes=_number(real / "size"),
        interleave_ways=_number(real / "interleave_ways"),
        interleave_bytes=_number(real / "interleave_granularity"),
        kind=_DECODER_KINDS[kind[1]] if kind else "",
        mode=mode,
        region=_text(real / "region"),
        locked=_number(real / "locked") == 1,
    )


def _is_port(name: str) -> bool:
    kind = _KIND.fullmatch(name)
    return kind is not None and kind[1] in _DECODER_KINDS


def _order(path: Path) -> tuple[str, tuple[int, ...]]:
    """mem2 before mem10."""
    digits = tuple(int(part) for part in re.findall(r"[0-9]+", path.name))
    return re.sub(r"[0-9.]+", "", path.name), digits


def _text(path: Path) -> str:
    """ "" for what is not there, and for what a device that just went can't say."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path, *, none: int = 0) -> int:
    """Decimal or hexadecimal; `none` for no number."""
    text = _text(path)
    if not _INTEGER.fullmatch(text):
        return none
    return int(text, 16 if text.startswith("0x") else 10)
