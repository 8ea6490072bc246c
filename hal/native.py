"""Words of shared or device memory: single aligned accesses, and the barriers around them (D11).

`words(buffer)` gives the compiled helper where it is built. On x86-64 alone a pure fallback may
serve: there a plain load or store of an aligned word is one access, loads are not reordered with
loads nor stores with stores (Intel SDM vol. 3A, 9.2.2), and the interpreter makes no reordering of
its own. On every other processor the absence of the helper is an error, not a guess.
"""

import platform
import sys
import threading
from types import ModuleType
from typing import Final, Protocol

from hal.errors import Refused, Unavailable
from hal.ports import Buffer

try:
    import hal._native as _compiled_module
except ImportError as _import_error:
    _compiled: ModuleType | None = None
    _why_not_compiled = str(_import_error)
else:
    _compiled = _compiled_module
    _why_not_compiled = ""

PURE: Final = _compiled is None  # shown by `apf status` and the benchmarks
_X86_64: Final = platform.machine().lower() in {"x86_64", "amd64"}
_BUILD_HINT: Final = "build it with `python setup.py build_ext --inplace` (needs a C compiler)"


class Words(Protocol):
    """Word access to one buffer. Offsets are bytes; Refused outside it or when unaligned."""

    @property
    def pure(self) -> bool:
        """True for the fallback without the compiled helper."""
        ...

    def load32_acquire(self, offset: int) -> int:
        """One aligned 32-bit load; nothing after it is done before it."""
        ...

    def store32_release(self, offset: int, value: int) -> None:
        """One aligned 32-bit store; everything before it is done before it."""
        ...

    def load64(self, offset: int) -> int:
        """One aligned 64-bit load, no barrier."""
        ...

    def store64(self, offset: int, value: int) -> None:
        """One aligned 64-bit store, no barrier."""
        ...

    def full_barrier(self) -> None:
        """Nothing passes it in either direction."""
        ...

    def copy_to(self, offset: int, data: Buffer) -> None:
        """Copy `data` into the buffer; width and order of the accesses are not promised."""
        ...

    def copy_from(self, offset: int, length: int) -> bytes:
        """Copy out of the buffer; width and order of the accesses are not promised."""
        ...

    def close(self) -> None:
        """Let go of the buffer; the words must not be used any more."""
        ...


def words(buffer: Buffer, *, pure: bool = False) -> Words:
    """Words over `buffer`: contiguous, 8-byte aligned (a mapping is), a multiple of 8 long.

    `pure` asks for the fallback; tests compare the two. Raises Unavailable where neither serves.
    """
    if sys.byteorder != "little":
        raise Unavailable("windows are little-endian and this processor is not")
    size_bytes = memoryview(buffer).nbytes
    if not size_bytes or size_bytes % 8:
        raise Refused(f"a buffer of {size_bytes} B: its size must be a multiple of 8, and not 0")
    if _compiled is not None and not pure:
        return CompiledWords(_compiled, buffer)
    if not _X86_64:
        raise Unavailable(
            f"hal._native is required on {platform.machine()}: its memory order cannot be had from "
            f"Python; {_why_not_compiled or 'the pure fallback was asked for'}; {_BUILD_HINT}"
        )
    return PureWords(buffer)


def check_word(offset: int, value: int, length: int) -> None:
    """Raise Refused unless this 32-bit value may be stored at `offset` of `length` bytes."""
    _check(offset, 4, length)
    _check_value(value, 4)


def _check(offset: int, width: int, length: int) -> None:
    if offset < 0 or offset + width > length:
        raise Refused(f"{width}-byte word at offset {offset} is outside the buffer of {length} B")
    if offset % width:
        raise Refused(f"{width}-byte word at offset {offset} is not aligned to {width}")


def _check_value(value: int, width: int) -> None:
    if not 0 <= value < 1 << (8 * width):
        raise Refused(f"value {value} does not fit {8 * width} unsigned bits")


def _check_range(offset: int, count: int, length: int) -> None:
    if offset < 0 or count < 0 or offset + count > length:
        raise Refused(f"{count} B at offset {offset} are outside the buffer of {length} B")


class CompiledWords:
    """Words through the compiled helper."""

    pure: Final = False

    def __init__(self, module: ModuleType, buffer: Buffer) -> None:
        self._ffi, self._lib = module.ffi, module.lib
        view = memoryview(buffer)
        self._writable = not view.readonly
        self._base = self._ffi.from_buffer("char[]", view)
        self._length = view.nbytes
        if int(self._ffi.cast("uintptr_t", self._base)) % 8:
            raise Refused("the buffer does not start at a multiple of 8; map it by pages")

    def load32_acquire(self, offset: int) -> int:
        _check(offset, 4, self._length)
        return int(self._lib.apf_load32_acquire(self._base, offset))

    def store32_release(self, offset: int, value: int) -> None:
        self._check_store(offset, value, 4)
        self._lib.apf_store32_release(self._base, offset, value)

    def load64(self, offset: int) -> int:
        _check(offset, 8, self._length)
        return int(self._lib.apf_load64(self._base, offset))

    def store64(self, offset: int, value: int) -> None:
        self._check_store(offset, value, 8)
        self._lib.apf_store64(self._base, offset, value)

    def full_barrier(self) -> None:
        self._lib.apf_full_barrier()

    def copy_to(self, offset: int, data: Buffer) -> None:
        source = self._ffi.from_buffer("char[]", data)
        _check_range(offset, len(source), self._length)
        self._check_writable()
        self._lib.apf_copy_to(self._base, offset, source, len(source))

    def copy_from(self, offset: int, length: int) -> bytes:
        _check_range(offset, length, self._length)
        target = bytearray(length)
        self._lib.apf_copy_from(self._base, offset, self._ffi.from_buffer(target), length)
        return bytes(target)

    def close(self) -> None:
        self._ffi.release(self._base)
        self._length = 0  # every later access is out of bounds

    def _check_store(self, offset: int, value: int, width: int) -> None:
        _check(offset, width, self._length)
        _check_value(value, width)
        self._check_writable()

    def _check_writable(self) -> None:
        if not self._writable:
            raise Refused("the buffer is read-only")


class PureWords:
    """Words through `memoryview.cast`: item access is one load or store on x86-64."""

    pure: Final = True

    def __init__(self, buffer: Buffer) -> None:
        self._bytes = memoryview(buffer).cast("B")
        self._length = self._bytes.nbytes
        self._words32 = self._bytes.cast("I")
        self._words64 = self._bytes.cast("Q")
        self._lock = threading.Lock()

    def load32_acquire(self, offset: int) -> int:
        _check(offset, 4, self._length)
        return self._words32[offset // 4]

    def store32_release(self, offset: int, value: int) -> None:
        self._check_store(offset, value, 4)
        self._words32[offset // 4] = value

    def load64(self, offset: int) -> int:
        _check(offset, 8, self._length)
        return self._words64[offset // 8]

    def store64(self, offset: int, value: int) -> None:
        self._check_store(offset, value, 8)
        self._words64[offset // 8] = value

    def full_barrier(self) -> None:
        with self._lock:  # a locked instruction, which is a full barrier (SDM vol. 3A, 9.2.3.9)
            pass

    def copy_to(self, offset: int, data: Buffer) -> None:
        source = memoryview(data).cast("B")
        _check_range(offset, source.nbytes, self._length)
        self._check_writable()
        self._bytes[offset : offset + source.nbytes] = source

    def copy_from(self, offset: int, length: int) -> bytes:
        _check_range(offset, length, self._length)
        return bytes(self._bytes[offset : offset + length])

    def close(self) -> None:
        for view in (self._words32, self._words64, self._bytes):
            view.release()
        self._length = 0  # every later access is out of bounds

    def _check_store(self, offset: int, value: int, width: int) -> None:
        _check(offset, width, self._length)
        _check_value(value, width)
        self._check_writable()

    def _check_writable(self) -> None:
        if self._bytes.readonly:
            raise Refused("the buffer is read-only")
