"""The addresses at which devices reach our memory: what the IOMMU offers, and type 1 mappings.

Ref: include/uapi/linux/vfio.h (VFIO_IOMMU_GET_INFO, MAP_DMA, UNMAP_DMA, capability IOVA_RANGE).

`IommuSpace` is the seam for another interface of the kernel: iommufd has the same four calls
(IOMMU_IOAS_IOVA_RANGES, IOMMU_IOAS_MAP, IOMMU_IOAS_UNMAP, close) behind /dev/iommu, from Linux 6.2.
"""

import contextlib
import errno
import os
import resource
from collections.abc import Sequence
from typing import Final, Protocol

from hal.errors import HalError, Refused, StoreFull, Unavailable
from hal.iova import IOVA_LOWEST, IovaAllocator
from hal.linux import _vfio_cdef as vfio
from hal.linux.oserror import hal_error

_ANYWHERE: Final = ((IOVA_LOWEST, (1 << 39) - 1),)  # for kernels that name no ranges (before 5.4)


class IommuSpace(Protocol):
    """One set of translations, shared by all the functions that are attached to it."""

    @property
    def page_bytes(self) -> int:
        """Smallest page: addresses and sizes are multiples of it."""
        ...

    @property
    def iova(self) -> IovaAllocator: ...

    def map(self, address: int, iova: int, size_bytes: int) -> None:
        """Let devices read and write `size_bytes` of this process, pinned. Raises StoreFull."""
        ...

    def unmap(self, iova: int, size_bytes: int) -> None:
        """No device reaches it any more when this returns."""
        ...

    def close(self) -> None: ...


class Type1Space:
    """`IommuSpace` on a VFIO container whose IOMMU is set. Owns the container's descriptor."""

    def __init__(self, container_fd: int, version: int) -> None:
        """`version` is TYPE1_IOMMU or TYPE1V2_IOMMU. Raises Unavailable."""
        self.version = version
        self._fd = container_fd
        try:
            info, reply = vfio.call_sized(
                container_fd, vfio.VFIO_IOMMU_GET_INFO, "vfio_iommu_type1_info"
            )
        except OSError as exc:
            raise hal_error(exc, "VFIO_IOMMU_GET_INFO") from exc
        sizes = info.iova_pgsizes if info.flags & vfio.IOMMU_INFO_PGSIZES else 0
        self._page_bytes = max(sizes & -sizes, os.sysconf("SC_PAGE_SIZE"))
        ranges: Sequence[tuple[int, int]] = _ANYWHERE
        if info.flags & vfio.IOMMU_INFO_CAPS:
            ranges = _ranges(vfio.capabilities(reply, info.cap_offset)) or _ANYWHERE
        self._iova = IovaAllocator(ranges, self._page_bytes)

    @property
    def page_bytes(self) -> int:
        return self._page_bytes

    @property
    def iova(self) -> IovaAllocator:
        return self._iova

    def map(self, address: int, iova: int, size_bytes: int) -> None:
        for what, value in (("address", address), ("device address", iova), ("size", size_bytes)):
            if value % self._page_bytes:
                raise Refused(f"DMA {what} {value:#x}: not a multiple of {self._page_bytes} B")
        request = vfio.struct(
            "vfio_iommu_type1_dma_map",
            flags=vfio.DMA_MAP_FLAG_READ | vfio.DMA_MAP_FLAG_WRITE,
            vaddr=address,
            iova=iova,
            size=size_bytes,
        )
        try:
            vfio.call(self._fd, vfio.VFIO_IOMMU_MAP_DMA, request)
        except OSError as exc:
            raise _map_error(exc, iova, size_bytes) from exc

    def unmap(self, iova: int, size_bytes: int) -> None:
        request = vfio.struct("vfio_iommu_type1_dma_unmap", iova=iova, size=size_bytes)
        try:
            vfio.call(self._fd, vfio.VFIO_IOMMU_UNMAP_DMA, request)
        except OSError as exc:
            raise hal_error(exc, f"VFIO_IOMMU_UNMAP_DMA {iova:#x} of {size_bytes} B") from exc
        if request.size != size_bytes:
            raise Unavailable(
                f"unmapping {iova:#x}: the kernel took away {request.size} B of {size_bytes} B"
            )

    def unmap_all(self) -> None:
        """Take away what a process before us has left (Linux 5.12 and later)."""
        with contextlib.suppress(OSError):  # a container of an older kernel starts empty for us
            request = vfio.struct("vfio_iommu_type1_dma_unmap", flags=vfio.DMA_UNMAP_FLAG_ALL)
            vfio.call(self._fd, vfio.VFIO_IOMMU_UNMAP_DMA, request)

    def close(self) -> None:
        """The last holder of the descriptor takes all mappings with it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _ranges(capabilities: dict[int, bytes]) -> list[tuple[int, int]]:
    found = capabilities.get(vfio.TYPE1_INFO_CAP_IOVA_RANGE)
    head = vfio.ffi.sizeof("struct vfio_iommu_type1_info_cap_iova_range")
    each = vfio.ffi.sizeof("struct vfio_iova_range")
    if found is None or len(found) < head:
        return []
    held = vfio.ffi.from_buffer("struct vfio_iommu_type1_info_cap_iova_range *", found)
    count = min(held.nr_iovas, (len(found) - head) // each)
    return [(held.iova_ranges[i].start, held.iova_ranges[i].end) for i in range(count)]


def _map_error(exc: OSError, iova: int, size_bytes: int) -> HalError:
    what = f"mapping {size_bytes} B for DMA at {iova:#x}"
    if exc.errno == errno.ENOMEM:
        soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        limit = "no limit" if soft == resource.RLIM_INFINITY else f"{soft} B"
        return StoreFull(
            f"{what}: out of memory, or of what this process may pin (RLIMIT_MEMLOCK: {limit}; "
            "raise LimitMEMLOCK= of the service)"
        )
    if exc.errno == errno.ENOSPC:
        return StoreFull(f"{what}: too many mappings (vfio_iommu_type1's dma_entry_limit)")
    return hal_error(exc, what)
