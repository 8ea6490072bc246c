"""The way to a VFIO device, and what is missing on it: container, IOMMU group, device.

Ref: Documentation/driver-api/vfio.rst; drivers/vfio/vfio_iommu_type1.c for the errors: EPERM of
VFIO_SET_IOMMU is missing interrupt remapping. The three descriptors are what must outlive a
daemon (DESIGN D12): closing the last copy of the device's disables and resets the function.
"""

import errno
import fcntl
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hal.errors import Absent, HalError, Unavailable
from hal.linux import _vfio_cdef as vfio
from hal.linux.oserror import hal_error
from hal.pci_ports import PciAddress

DRIVERS: Final = ("vfio-pci",)
HARMLESS: Final = frozenset({"", "vfio-pci", "pcieport", "pci-stub"})  # vfio_dev_viable()
IOMMU_VERSIONS: Final = (vfio.TYPE1V2_IOMMU, vfio.TYPE1_IOMMU)  # the better one first


@dataclass(frozen=True, slots=True, kw_only=True)
class VfioFds:
    """What holds a function; whoever keeps a copy of them keeps it from being reset."""

    group: int
    container_fd: int
    group_fd: int
    device_fd: int
    iommu: int  # the type that the container was set to

    def close(self) -> None:
        """Device first: the container's translations outlive what uses them."""
        for fd in (self.device_fd, self.group_fd, self.container_fd):
            if fd >= 0:
                os.close(fd)


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the kernel shows itself; tests have their own."""

    sys: Path = Path("/sys")
    dev: Path = Path("/dev")

    def device(self, address: PciAddress) -> Path:
        return self.sys / "bus/pci/devices" / str(address)


def group_of(address: PciAddress, places: Places) -> int:
    """The IOMMU group of a function that is ready for VFIO. Raises Absent (no such function) and
    Unavailable (no IOMMU, another driver)."""
    device = places.device(address)
    if not device.is_dir():
        raise Absent(f"{address}: no such PCI function; `lspci` shows those that are there")
    link = device / "iommu_group"
    if not link.exists():
        units = places.sys / "class/iommu"
        if units.is_dir() and any(units.iterdir()):
            raise Unavailable(f"{address}: in no IOMMU group: no IOMMU unit covers it")
        raise Unavailable(
            f"{address}: this host has no IOMMU that is on: enable VT-d, AMD-Vi or SMMU in the "
            "firmware and boot with intel_iommu=on (Intel)"
        )
    driver = driver_of(device)
    if driver not in DRIVERS:
        what = f"bound to {driver}" if driver else "bound to no driver"
        raise Unavailable(f"{address}: {what}; want {DRIVERS[0]} (bind it first)")
    return int(os.path.basename(os.readlink(link)))


def driver_of(device: Path) -> str:
    """The driver's name, "" for none."""
    try:
        return os.path.basename(os.readlink(device / "driver"))
    except FileNotFoundError:
        return ""
    except OSError as exc:
        raise hal_error(exc, f"{device}/driver") from exc


def members(group: int, places: Places) -> Sequence[tuple[str, str]]:
    """(address, driver) of all functions in a group."""
    folder = places.sys / "kernel/iommu_groups" / str(group) / "devices"
    try:
        return [(name, driver_of(folder / name)) for name in sorted(os.listdir(folder))]
    except OSError as exc:
        raise hal_error(exc, f"the functions of IOMMU group {group}") from exc


def open_fds(address: PciAddress, places: Places = Places()) -> VfioFds:
    """Everything that one function needs, its IOMMU set. Raises Absent and Unavailable with what
    is missing."""
    group = group_of(address, places)
    with ExitStack() as undo:
        container_fd = _open_container(places)
        undo.callback(os.close, container_fd)
        group_fd = _open_group(group, address, places)
        undo.callback(os.close, group_fd)
        _check_viable(group, group_fd, address, places)
        iommu = _set_iommu(container_fd, group_fd, group, address, places)
        device_fd = open_device(group_fd, address)
        undo.pop_all()
    return VfioFds(
        group=group,
        container_fd=container_fd,
        group_fd=group_fd,
        device_fd=device_fd,
        iommu=iommu,
    )


def open_device(group_fd: int, address: PciAddress) -> int:
    """The device's own descriptor; the caller closes it."""
    try:
        name = str(address).encode() + b"\0"
        return vfio.call_text(group_fd, vfio.VFIO_GROUP_GET_DEVICE_FD, name)
    except OSError as exc:
        raise hal_error(exc, f"{address}: VFIO_GROUP_GET_DEVICE_FD") from exc


def _open_container(places: Places) -> int:
    path = places.dev / "vfio/vfio"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise _open_error(exc, path, "the kernel has no VFIO: modprobe vfio-pci") from exc
    try:
        version = fcntl.ioctl(fd, vfio.VFIO_GET_API_VERSION)
    except OSError as exc:
        os.close(fd)
        raise hal_error(exc, f"{path}: VFIO_GET_API_VERSION") from exc
    if version != vfio.API_VERSION:
        os.close(fd)
        raise Unavailable(f"{path}: VFIO API {version}, want {vfio.API_VERSION}")
    return fd


def _open_group(group: int, address: PciAddress, places: Places) -> int:
    path = places.dev / "vfio" / str(group)
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno == errno.EBUSY:
            raise Unavailable(
                f"{address}: {path} is open already: another process drives this IOMMU group (a "
                "daemon, a virtual machine, a bench tool); only one may"
            ) from exc
        if (places.dev / "vfio" / f"noiommu-{group}").exists():
            raise Unavailable(
                f"{address}: VFIO runs without an IOMMU here, and its DMA could reach all memory: "
                "not used"
            ) from exc
        raise _open_error(exc, path, f"no VFIO driver has a function of group {group}") from exc


def _open_error(exc: OSError, path: Path, absent: str) -> HalError:
    if exc.errno in (errno.EACCES, errno.EPERM):
        return Unavailable(
            f"{path}: permission denied for uid {os.geteuid()}: give this user the file (udev "
            'rule: SUBSYSTEM=="vfio", GROUP="apf", MODE="0660")'
        )
    if exc.errno in (errno.ENOENT, errno.ENODEV):
        return Unavailable(f"{path}: {absent}")
    return hal_error(exc, str(path))


def _check_viable(group: int, group_fd: int, address: PciAddress, places: Places) -> None:
    status = vfio.struct("vfio_group_status")
    try:
        vfio.call(group_fd, vfio.VFIO_GROUP_GET_STATUS, status)
    except OSError as exc:
        raise hal_error(exc, f"{address}: status of IOMMU group {group}") from exc
    if status.flags & vfio.GROUP_FLAGS_VIABLE:
        return
    others = [
        f"{name} ({driver})" for name, driver in members(group, places) if driver not in HARMLESS
    ]
    raise Unavailable(
        f"{address}: IOMMU group {group} is not viable: the kernel itself drives "
        f"{', '.join(others[:8]) or 'a function of it'}; bind all of the group to vfio-pci, or "
        "use a slot whose switch separates its functions (ACS)"
    )


def _set_iommu(
    container_fd: int, group_fd: int, group: int, address: PciAddress, places: Places
) -> int:
    try:
        fcntl.ioctl(group_fd, vfio.VFIO_GROUP_SET_CONTAINER, container_fd.to_bytes(4, "little"))
    except OSError as exc:
        raise hal_error(exc, f"{address}: IOMMU group {group} into a container") from exc
    known = [
        version
        for version in IOMMU_VERSIONS
        if fcntl.ioctl(container_fd, vfio.VFIO_CHECK_EXTENSION, version)
    ]
    if not known:
        raise Unavailable(
            f"{address}: the kernel offers no type 1 IOMMU: modprobe vfio_iommu_type1"
        )
    try:
        fcntl.ioctl(container_fd, vfio.VFIO_SET_IOMMU, known[0])
    except OSError as exc:
        raise _set_iommu_error(exc, address, places) from exc
    return known[0]


def _set_iommu_error(exc: OSError, address: PciAddress, places: Places) -> HalError:
    if exc.errno != errno.EPERM:
        return hal_error(exc, f"{address}: VFIO_SET_IOMMU")
    unsafe = places.sys / "module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
    try:
        found = unsafe.read_text().strip()
    except OSError:
        found = "?"
    return Unavailable(
        f"{address}: interrupt remapping is off, so a device could forge interrupts "
        f"(VFIO_SET_IOMMU was not permitted; allow_unsafe_interrupts is {found}): enable it in the "
        "firmware and don't boot with intremap=off; on a bench alone, `modprobe vfio_iommu_type1 "
        "allow_unsafe_interrupts=1`"
    )
