"""Regions of a VFIO device: what they are, mapped access, and access through the kernel.

Ref: include/uapi/linux/vfio.h (VFIO_DEVICE_GET_REGION_INFO, capability SPARSE_MMAP).

A mapped BAR of a device whose memory decoding is off (in reset, in D3hot, removed) answers with
SIGBUS in Linux 5.8 and later, which would end the process. So nothing here touches the mapping
while the function says that it is blocked, and bulk copies belong into another process (D11).
"""

import mmap
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from hal.errors import Absent, Refused, Unavailable
from hal.linux import _vfio_cdef as vfio
from hal.linux.oserror import hal_error
from hal.native_mmio import ONES32, ONES64, MmioWords
from hal.pci_ports import PciRegion
from hal.ports import Buffer

_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
COPY_LIMIT_BYTES: Final = 1 << 20  # of one copy through the kernel


class DeviceState(Protocol):
    """What a region asks of its function."""

    @property
    def blocked(self) -> str:
        """Why nothing may be touched now; "" when all is well."""
        ...

    def refuse(self) -> None:
        """Raise what `blocked` means: DeviceGone, or Unavailable while it is reset."""
        ...

    def check_present(self, what: str) -> None:
        """A read gave all ones: raise DeviceGone unless the device still answers."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionInfo:
    """One region as the kernel describes it."""

    region: PciRegion
    file_offset: int  # of its first byte in the device's descriptor


def region_info(device_fd: int, index: int) -> RegionInfo | None:
    """None for a region that this device doesn't have."""
    try:
        info, reply = vfio.call_sized(
            device_fd, vfio.VFIO_DEVICE_GET_REGION_INFO, "vfio_region_info", index=index
        )
    except OSError as exc:
        raise hal_error(exc, f"VFIO_DEVICE_GET_REGION_INFO {index}") from exc
    if not info.size:
        return None
    sparse = info.flags & vfio.REGION_FLAG_CAPS and (
        vfio.REGION_CAP_SPARSE_MMAP in vfio.capabilities(reply, info.cap_offset)
    )
    return RegionInfo(
        region=PciRegion(
            index=index,
            size_bytes=info.size,
            readable=bool(info.flags & vfio.REGION_FLAG_READ),
            writable=bool(info.flags & vfio.REGION_FLAG_WRITE),
            mappable=bool(info.flags & vfio.REGION_FLAG_MMAP) and not sparse,
        ),
        file_offset=info.offset,
    )


class MappedRegion:
    """`hal.pci_ports.Mmio` by mmap and the compiled helper."""

    def __init__(
        self,
        device_fd: int,
        info: RegionInfo,
        state: DeviceState,
        name: str,
        on_close: Callable[[], None],
    ) -> None:
        self._state, self._on_close = state, on_close
        region = info.region
        try:
            self._memory = mmap.mmap(
                device_fd,
                region.size_bytes,
                flags=mmap.MAP_SHARED,
                prot=mmap.PROT_READ | (mmap.PROT_WRITE if region.writable else 0),
                offset=info.file_offset,
            )
        except OSError as exc:
            raise hal_error(exc, f"{name}: mapping its {region.size_bytes} B") from exc
        try:
            self._words = MmioWords(memoryview(self._memory), name)
        except (Refused, Unavailable):
            self._memory.close()
            raise
        self._open = True

    @property
    def size_bytes(self) -> int:
        return max(0, self._words.size_bytes)

    @property
    def memory(self) -> mmap.mmap:
        """The mapping itself, for `hal.native.words` over device memory (windows)."""
        return self._memory

    @property
    def words(self) -> MmioWords:
        """Accesses that nobody checks for all ones: the benchmark's."""
        return self._words

    def read32(self, offset: int) -> int:
        if self._state.blocked:
            self._state.refuse()
        value = self._words.read32(offset)
        if value == ONES32:
            self._state.check_present(f"{self._words.name}: read at {offset:#x}")
        return value

    def write32(self, offset: int, value: int) -> None:
        if self._state.blocked:
            self._state.refuse()
        self._words.write32(offset, value)

    def read64(self, offset: int) -> int:
        if self._state.blocked:
            self._state.refuse()
        value = self._words.read64(offset)
        if value == ONES64:
            self._state.check_present(f"{self._words.name}: read at {offset:#x}")
        return value

    def write64(self, offset: int, value: int) -> None:
        if self._state.blocked:
            self._state.refuse()
        self._words.write64(offset, value)

    def barrier(self) -> None:
        self._words.barrier()

    def copy_to(self, offset: int, data: Buffer) -> None:
        if self._state.blocked:
            self._state.refuse()
        self._words.copy_to(offset, data)

    def copy_from(self, offset: int, length: int) -> bytes:
        if self._state.blocked:
            self._state.refuse()
        data, ones = self._words.copy_from(offset, length)
        if ones:
            self._state.check_present(f"{self._words.name}: {length} B at {offset:#x}")
        return data

    def close(self) -> None:
        if self._open:
            self._open = False
            self._words.close()
            self._memory.close()
            self._on_close()


class CalledRegion:
    """`hal.pci_ports.Mmio` by pread(2) and pwrite(2), for what can't be mapped (I/O ports, BARs
    that share a page with another device). The kernel makes each of 4 bytes one access."""

    def __init__(
        self,
        device_fd: int,
        info: RegionInfo,
        state: DeviceState,
        name: str,
        on_close: Callable[[], None],
    ) -> None:
        self._fd, self._at = device_fd, info.file_offset
        self._size_bytes = info.region.size_bytes
        self._state, self._name, self._on_close = state, name, on_close
        self._open = True

    @property
    def size_bytes(self) -> int:
        return self._size_bytes if self._open else 0

    def read32(self, offset: int) -> int:
        value: int = _U32.unpack(self._read(offset, 4, 4))[0]
        if value == ONES32:
            self._state.check_present(f"{self._name}: read at {offset:#x}")
        return value

    def write32(self, offset: int, value: int) -> None:
        self._write(offset, _packed(_U32, value, self._name), 4)

    def read64(self, offset: int) -> int:
        """Two accesses of 4 bytes in Linux before 6.11: for registers that allow it."""
        value: int = _U64.unpack(self._read(offset, 8, 8))[0]
        if value == ONES64:
            self._state.check_present(f"{self._name}: read at {offset:#x}")
        return value

    def write64(self, offset: int, value: int) -> None:
        self._write(offset, _packed(_U64, value, self._name), 8)

    def barrier(self) -> None:
        """Each call to the kernel is one already."""

    def copy_to(self, offset: int, data: Buffer) -> None:
        self._write(offset, bytes(data), 4)

    def copy_from(self, offset: int, length: int) -> bytes:
        data = self._read(offset, length, 4)
        if data and data.count(0xFF) == len(data):
            self._state.check_present(f"{self._name}: {length} B at {offset:#x}")
        return data

    def close(self) -> None:
        if self._open:
            self._open = False
            self._on_close()

    def _read(self, offset: int, length: int, align: int) -> bytes:
        self._check("read", offset, length, align)
        try:
            data = os.pread(self._fd, length, self._at + offset)
        except OSError as exc:
            raise hal_error(exc, f"{self._name}: read at {offset:#x}") from exc
        if len(data) != length:
            raise Unavailable(f"{self._name}: {len(data)} B of {length} read at {offset:#x}")
        return data

    def _write(self, offset: int, data: bytes, align: int) -> None:
        self._check("write", offset, len(data), align)
        try:
            taken = os.pwrite(self._fd, data, self._at + offset)
        except OSError as exc:
            raise hal_error(exc, f"{self._name}: write at {offset:#x}") from exc
        if taken != len(data):
            raise Unavailable(f"{self._name}: {taken} B of {len(data)} written at {offset:#x}")

    def _check(self, what: str, offset: int, length: int, align: int) -> None:
        where = f"{self._name}: {what} of {length} B at offset {offset:#x}"
        if not self._open:
            raise Refused(f"{where}: it was closed")
        if not 0 <= length <= COPY_LIMIT_BYTES:
            raise Refused(f"{where}: at most {COPY_LIMIT_BYTES} B at once through the kernel")
        if not 0 <= offset <= self._size_bytes - length:
            raise Refused(f"{where} is outside its {self._size_bytes} B")
        if offset % align or length % 4:
            raise Refused(f"{where}: not aligned to {align}")
        if self._state.blocked:
            self._state.refuse()


def _packed(form: struct.Struct, value: int, name: str) -> bytes:
    try:
        return form.pack(value)
    except struct.error as exc:
        raise Refused(f"{name}: value {value:#x} does not fit {form.size * 8} bits") from exc


def check_bar(name: str, info: RegionInfo | None, at_least_bytes: int) -> RegionInfo:
    """The region that is wanted. Raises Absent and Unavailable, as `PciFunction.map` does."""
    if info is None:
        raise Absent(f"{name}: this function has no such BAR, or its memory was not assigned")
    if info.region.size_bytes < at_least_bytes:
        raise Unavailable(
            f"{name} is {info.region.size_bytes} B, {at_least_bytes} B were described: the wrong "
            "module, or other firmware on it"
        )
    return info
