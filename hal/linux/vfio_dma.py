"""Buffers that a device reaches: whole pages, zeroed, pinned, given back in a safe order."""

import contextlib
import mmap
from collections.abc import Callable
from typing import Final

from cffi import FFI  # type: ignore[import-untyped]  # cffi ships no types

from hal.errors import HalError, StoreFull
from hal.linux.vfio_iommu import IommuSpace

BUFFER_LIMIT_BYTES: Final = 1 << 32
_ffi: Final = FFI()


class VfioDmaBuffer:
    """`hal.pci_ports.DmaBuffer`. Pinning zeroes every page: about 0.3 ms a MiB."""

    def __init__(
        self,
        space: IommuSpace,
        size_bytes: int,
        address_bits: int,
        on_close: Callable[["VfioDmaBuffer"], None],
    ) -> None:
        self._space = space
        self._on_close = on_close
        self.iova = space.iova.allocate(size_bytes, address_bits)
        self.size_bytes = size_bytes
        self.closed = False
        try:
            # shared, so that a fork makes no copy on write behind the device's back
            self._memory = mmap.mmap(-1, size_bytes, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
        except OSError as exc:
            space.iova.free(self.iova)
            raise StoreFull(f"{size_bytes} B of memory for DMA: {exc}") from exc
        try:
            self._memory.madvise(mmap.MADV_DONTFORK)
            base = _ffi.from_buffer(self._memory)
            address = int(_ffi.cast("uintptr_t", base))
            _ffi.release(base)
            space.map(address, self.iova, size_bytes)
        except HalError:
            self._memory.close()
            space.iova.free(self.iova)
            raise
        self.view = memoryview(self._memory)

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._on_close(self)
        try:
            self._space.unmap(self.iova, self.size_bytes)
            self._space.iova.free(self.iova)  # else it is never given out again: still mapped
        finally:
            self.view.release()
            with contextlib.suppress(BufferError):  # a view that is still held; freed with it
                self._memory.close()
