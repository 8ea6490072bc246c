"""Device memory: single aligned volatile accesses through the compiled helper (DESIGN D11).

There is no pure fallback: a register may count its reads, and Python promises no width.
All bounds and alignments are checked here, before anything is touched. What all ones mean is
for the caller: only it can ask the link.
"""

from typing import Final

from hal.errors import Refused, Unavailable
from hal.ports import Buffer

try:
    from hal._native import ffi as _ffi
    from hal._native import lib as _lib
except ImportError as _exc:
    _ffi = _lib = None
    _why = str(_exc)
else:
    _why = ""

ONES32: Final = 0xFFFF_FFFF
ONES64: Final = 0xFFFF_FFFF_FFFF_FFFF


class MmioWords:
    """Accesses to one mapping of device memory. The mapping must outlive it."""

    def __init__(self, mapping: Buffer, name: str) -> None:
        """`name` is for errors. Raises Unavailable without the helper, Refused for a mapping
        that doesn't start at a multiple of 8."""
        if _lib is None:
            raise Unavailable(
                f"{name}: device memory needs hal._native: {_why}; build it with `python setup.py "
                "build_ext --inplace` (needs a C compiler)"
            )
        view = memoryview(mapping)
        self.name = name
        self.size_bytes = view.nbytes
        self.writable = not view.readonly
        self._base = _ffi.from_buffer("char[]", view)
        if int(_ffi.cast("uintptr_t", self._base)) % 8:
            _ffi.release(self._base)
            raise Refused(f"{name}: the mapping does not start at a multiple of 8; map whole pages")

    def read32(self, offset: int) -> int:
        if offset & 3 or not 0 <= offset <= self.size_bytes - 4:
            self._refuse("read", offset, 4, 4)
        value: int = _lib.apf_mmio_read32(self._base, offset)
        return value

    def write32(self, offset: int, value: int) -> None:
        if offset & 3 or not 0 <= offset <= self.size_bytes - 4 or not self.writable:
            self._refuse("write", offset, 4, 4)
        if not 0 <= value <= ONES32:
            raise Refused(f"{self.name}: value {value:#x} at {offset:#x} does not fit 32 bits")
        _lib.apf_mmio_write32(self._base, offset, value)

    def read64(self, offset: int) -> int:
        if offset & 7 or not 0 <= offset <= self.size_bytes - 8:
            self._refuse("read", offset, 8, 8)
        value: int = _lib.apf_mmio_read64(self._base, offset)
        return value

    def write64(self, offset: int, value: int) -> None:
        if offset & 7 or not 0 <= offset <= self.size_bytes - 8 or not self.writable:
            self._refuse("write", offset, 8, 8)
        if not 0 <= value <= ONES64:
            raise Refused(f"{self.name}: value {value:#x} at {offset:#x} does not fit 64 bits")
        _lib.apf_mmio_write64(self._base, offset, value)

    def barrier(self) -> None:
        _lib.apf_mmio_barrier()

    def copy_to(self, offset: int, data: Buffer) -> None:
        """By accesses of 8 bytes, of 4 at the ends."""
        source = _ffi.from_buffer("char[]", data)
        length = len(source)
        if (offset | length) & 3 or not 0 <= offset <= self.size_bytes - length:
            self._refuse("write", offset, length, 4)
        if not self.writable:
            self._refuse("write", offset, length, 4)
        _lib.apf_mmio_copy_to(self._base, offset, source, length)

    def copy_from(self, offset: int, length: int) -> tuple[bytes, bool]:
        """The bytes, and whether they are nothing but ones."""
        if length < 0 or (offset | length) & 3 or not 0 <= offset <= self.size_bytes - length:
            self._refuse("read", offset, length, 4)
        target = bytearray(length)
        ones = _lib.apf_mmio_copy_from(self._base, offset, _ffi.from_buffer(target), length)
        return bytes(target), bool(ones) and length > 0

    def read32_loop(self, offset: int, count: int) -> None:
        """`count` reads in a row in C: the baseline of the benchmark."""
        if offset & 3 or not 0 <= offset <= self.size_bytes - 4:
            self._refuse("read", offset, 4, 4)
        _lib.apf_mmio_read32_loop(self._base, offset, count)

    def write32_loop(self, offset: int, value: int, count: int) -> None:
        """`count` writes in a row in C: the baseline of the benchmark."""
        if offset & 3 or not 0 <= offset <= self.size_bytes - 4 or not self.writable:
            self._refuse("write", offset, 4, 4)
        _lib.apf_mmio_write32_loop(self._base, offset, value, count)

    def close(self) -> None:
        """Let go of the mapping; every later access is Refused. Twice is fine."""
        if self.size_bytes >= 0:
            self.size_bytes = -1
            _ffi.release(self._base)

    def _refuse(self, what: str, offset: int, width: int, align: int) -> None:
        where = f"{self.name}: {what} of {width} B at offset {offset:#x}"
        if self.size_bytes < 0:
            raise Refused(f"{where}: it was closed")
        if what == "write" and not self.writable:
            raise Refused(f"{where}: it was mapped for reading only")
        if width < 0 or not 0 <= offset <= self.size_bytes - width:
            raise Refused(f"{where} is outside its {self.size_bytes} B")
        raise Refused(f"{where}: not aligned to {align}")
