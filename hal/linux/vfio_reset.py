"""Reset of a function through VFIO: its own, or that of the bus with all that is on it.

Ref: include/uapi/linux/vfio.h (VFIO_DEVICE_RESET, VFIO_DEVICE_PCI_HOT_RESET). The kernel picks the
function's own way (FLR, power state, secondary bus reset) and restores config space.
"""

import errno
import fcntl
from collections.abc import Mapping

from hal.errors import Unavailable
from hal.linux import _vfio_cdef as vfio
from hal.linux.oserror import hal_error
from hal.pci_ports import PciAddress


def reset_device(
    address: PciAddress, device_fd: int, can_reset: bool, group_fds: Mapping[int, int]
) -> None:
    """Blocks until the device is ready again. Raises Unavailable when there is no way."""
    if can_reset:
        try:
            fcntl.ioctl(device_fd, vfio.VFIO_DEVICE_RESET)
        except OSError as exc:
            raise hal_error(exc, f"{address}: VFIO_DEVICE_RESET") from exc
        return
    _hot_reset(address, device_fd, group_fds)


def _hot_reset(address: PciAddress, device_fd: int, group_fds: Mapping[int, int]) -> None:
    """The whole bus, if all the functions on it are ours."""
    try:
        info = _hot_reset_info(device_fd)
    except OSError as exc:
        if exc.errno in (errno.ENODEV, errno.EINVAL):
            raise Unavailable(
                f"{address}: it has no reset of its own (FLR, power state), and its bus has none "
                "either: use the power of its slot"
            ) from exc
        raise hal_error(exc, f"{address}: VFIO_DEVICE_GET_PCI_HOT_RESET_INFO") from exc
    foreign = sorted({group for group, _ in info} - group_fds.keys())
    if foreign:
        names = ", ".join(name for group, name in info if group in foreign[:8])
        raise Unavailable(
            f"{address}: only a reset of its whole bus is left, which others share: {names}"
        )
    fds = [group_fds[group] for group in sorted({group for group, _ in info})]
    head = vfio.ffi.sizeof("struct vfio_pci_hot_reset")
    request = bytearray(head + 4 * len(fds))
    request[0:4] = len(request).to_bytes(4, "little")  # argsz
    request[8:12] = len(fds).to_bytes(4, "little")  # count
    request[head:] = b"".join(fd.to_bytes(4, "little") for fd in fds)
    try:
        fcntl.ioctl(device_fd, vfio.VFIO_DEVICE_PCI_HOT_RESET, request, True)
    except OSError as exc:
        raise hal_error(exc, f"{address}: VFIO_DEVICE_PCI_HOT_RESET") from exc


def _hot_reset_info(device_fd: int) -> list[tuple[int, str]]:
    """(group, address) of all functions that such a reset would hit. Raises OSError."""
    head = vfio.ffi.sizeof("struct vfio_pci_hot_reset_info")
    each = vfio.ffi.sizeof("struct vfio_pci_dependent_device")
    request = bytearray(head + 256 * each)  # 256 functions on a bus
    request[0:4] = len(request).to_bytes(4, "little")
    fcntl.ioctl(device_fd, vfio.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, request, True)
    held = vfio.ffi.from_buffer("struct vfio_pci_hot_reset_info *", request)
    found = []
    for i in range(min(held.count, 256)):
        one = held.devices[i]
        at = PciAddress(one.segment, one.bus, one.devfn >> 3, one.devfn & 7)
        found.append((int(one.group_id), str(at)))
    return found
