"""A window in memory that both ends map as a whole: a PCI BAR, CXL memory, a file behind ivshmem.

    pci:0000:01:00.0/bar2?side=a         sysfs resource2 (resource2_wc where there is one)
    pci:0000:00:10.0/00.0/bar2?side=a    the function 00.0 below that port, whatever its bus number
    map:/dev/dax0.0?side=b               a device or file as it is

Ref: the kernel's Documentation/PCI/sysfs-pci.rst (resourceN, resourceN_wc, enable). The layout is
`hal.bar_layout`. Bytes move by plain copies: the memory has no side effects. Words go through
`hal.native_mmio`: one volatile access each, with the barriers of device memory, so that what was
written before a published index has left the write-combining buffers when it does.

A function that is gone reads as ones or zeros, never as our header: an index that reads as either
is checked against it, and DeviceGone names what was found. Where the processor answers such a read
with SIGBUS instead nobody can help the reading process, so that only a *mover* reads (DESIGN D11).
"""

import contextlib
import mmap
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from hal.bar_layout import HEADER_BYTES, MAGIC, OFF_BELL, BarLayout, Side
from hal.errors import Absent, DeviceGone, HalError, Refused, Unavailable
from hal.linux.oserror import hal_error
from hal.native_mmio import ONES32, MmioWords
from hal.ports import Buffer

SYSFS: Final = Path("/sys/bus/pci/devices")
DAX: Final = Path("/sys/bus/dax/devices")
_ADDRESS: Final = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")
_BELOW: Final = re.compile(r"[01][0-9a-f]\.[0-7]")
_BAR: Final = re.compile(r"bar[0-5]")
_GONE_WORDS: Final = (0, ONES32)
_VENDOR_GONE: Final = b"\xff\xff"
_HEX: Final = re.compile(r"(?:0x)?[0-9a-fA-F]{1,16}")
_FLAG_MEMORY: Final = 0x200  # IORESOURCE_MEM, <linux/ioport.h>
_FLAG_PREFETCH: Final = 0x2000  # IORESOURCE_PREFETCH


class BarWindow:
    """`hal.ports.Window` in a mapping of the whole memory. Owns the mapping."""

    def __init__(
        self,
        mapping: mmap.mmap,
        side: Side,
        name: str,
        *,
        why_gone: Callable[[], str] = lambda: "",
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        """`why_gone()` says what the link says of the device, "" when it is there; `on_close()` is
        called when it is closed, for whatever else goes with it. Side a writes the header, side b
        only into memory that is all zeros. Raises Refused for another layout."""
        self.name = name
        self._mapping = mapping
        self._why_gone, self._on_close = why_gone, on_close
        self._layout = BarLayout.of(len(mapping))
        self._half_bytes = self._layout.half_bytes
        self._whole = memoryview(mapping)
        self.side: Side = side
        self.far: Side = "b" if side == "a" else "a"
        self._tx_at = self._layout.half_offset(self.side)
        self._rx_at = self._layout.half_offset(self.far)
        self._tx = self._whole[self._tx_at : self._tx_at + self._half_bytes]
        self._rx = self._whole[self._rx_at : self._rx_at + self._half_bytes].toreadonly()
        self._words: MmioWords | None = None
        try:
            self._words = MmioWords(self._whole, name)
            self._check_header()
        except (Refused, DeviceGone, Unavailable):
            self.close()
            raise

    @property
    def tx_bytes(self) -> int:
        return self._half_bytes

    @property
    def rx_bytes(self) -> int:
        return self._half_bytes

    def write(self, offset: int, data: Buffer) -> None:
        if type(data) is bytes:  # the usual chunk, without a view and two calls
            end = offset + len(data)
            if offset >= 0 and end <= self._half_bytes and self._words is not None:
                self._tx[offset:end] = data
                return
        source = memoryview(data)
        if source.format != "B" or source.ndim != 1:
            source = source.cast("B")
        self._check("write", offset, source.nbytes)
        self._tx[offset : offset + source.nbytes] = source

    def read(self, offset: int, length: int) -> memoryview:
        end = offset + length
        if not (0 <= offset <= end <= self._half_bytes and self._words is not None):
            self._check("read", offset, length)  # raises; without two calls in the usual case
        return self._rx[offset:end]

    def publish(self, offset: int, value: int) -> None:
        self._check("publish", offset, 4)
        words = self._open_words()
        words.barrier()  # the data first: a combined write would else still be on its way
        words.write32(self._tx_at + offset, value)
        words.barrier()  # and now this: nobody polls for what stays in our buffers

    def acquire(self, offset: int) -> int:
        self._check("acquire", offset, 4)
        words = self._open_words()
        value = words.read32(self._rx_at + offset)
        if value in _GONE_WORDS:
            self.check_there()
        return value

    def close(self) -> None:
        """Unmap; views that `read` gave keep it mapped until they go."""
        if self._words is not None:
            self._words.close()
            self._words = None
        for view in (self._tx, self._rx, self._whole):
            with contextlib.suppress(BufferError):  # a reader's slice of it
                view.release()
        with contextlib.suppress(BufferError):
            self._mapping.close()
        on_close, self._on_close = self._on_close, lambda: None
        on_close()

    # --- for the polled doorbell ---

    def ring_count(self, side: Side) -> int:
        """How often this side has rung, modulo 2^32. Raises DeviceGone."""
        value = self._open_words().read32(OFF_BELL[side])
        if value in _GONE_WORDS:
            self.check_there()
        return value

    def set_ring_count(self, count: int) -> None:
        """Of our own side."""
        words = self._open_words()
        words.barrier()  # what it tells of was written before
        words.write32(OFF_BELL[self.side], count)
        words.barrier()

    def check_there(self) -> None:
        """Raise DeviceGone unless the header reads as ours."""
        magic = self._open_words().read32(0)
        if magic != MAGIC:
            why = self._why_gone() or "the function itself still answers: something else wrote it"
            raise DeviceGone(f"{self.name}: the header reads as {magic:#010x}; {why}")

    # --- inside ---

    def _check_header(self) -> None:
        found = bytes(self._whole[:HEADER_BYTES])
        if found == b"\xff" * HEADER_BYTES:
            why = self._why_gone() or "its memory is not decoded (a driver or `enable` does that)"
            raise DeviceGone(f"{self.name}: reads as all ones; {why}")
        problem = self._layout.problem(found)
        if problem is None:
            return
        if self.side == "b" and any(found):
            raise Refused(
                f"{self.name}: not a window of ours: {problem}; side a formats it, so start the "
                "card's end, or give both ends the same BAR and version"
            )
        if any(found):  # another user's, or of an earlier life
            self._whole[: self._layout.half_offset("a")] = bytes(self._layout.half_offset("a"))
        self._whole[:HEADER_BYTES] = self._layout.header()
        self._open_words().barrier()
        self.check_there()

    def _open_words(self) -> MmioWords:
        if self._words is None:
            raise Unavailable(f"{self.name}: the window was closed")
        return self._words

    def _check(self, what: str, offset: int, length: int) -> None:
        self._open_words()
        if offset < 0 or length < 0 or offset + length > self._half_bytes:
            raise Refused(
                f"{self.name}: {what} of {length} B at offset {offset} is outside the half of "
                f"{self._half_bytes} B; nothing was moved"
            )


def open_pci_window(
    target: str, side: Side, *, at_least_bytes: int = 0, sysfs: Path = SYSFS
) -> BarWindow:
    """A BAR of a function that no driver holds, by sysfs. Raises Absent (no such function or BAR),
    Unavailable (smaller than `at_least_bytes`, permission), Refused (no memory, bad target)."""
    device, index = find_bar(target, sysfs=sysfs)
    _start, size_bytes, flags = bar_of(device, index)
    name = f"{device.name}/bar{index}"
    if not size_bytes or not flags & _FLAG_MEMORY:
        raise Absent(f"{name}: this function has no memory BAR {index}; see {device}/resource")
    if size_bytes < at_least_bytes:
        raise Unavailable(
            f"{name}: has {size_bytes} B, the board says at least {at_least_bytes} B; correct "
            "window_bytes in the board file, or the module has another BAR than it should"
        )
    if not flags & _FLAG_PREFETCH and os.uname().machine not in ("x86_64", "i686"):
        raise Refused(f"{name}: not prefetchable: here such a mapping allows no plain copies")
    _enable(device)
    path = device / f"resource{index}_wc"
    if not path.exists():
        path = device / f"resource{index}"
    mapping = _map(path, at_least_bytes or size_bytes)
    return BarWindow(mapping, side, name, why_gone=lambda: why_gone(device))


def open_mapped_window(path: str, side: Side, *, at_least_bytes: int = 0) -> BarWindow:
    """Any file or character device that can be mapped: CXL memory as devdax, the file behind an
    ivshmem. Without `at_least_bytes` all of it."""
    size_bytes = at_least_bytes or _size_of(path)
    return BarWindow(_map(Path(path), size_bytes), side, path)


def pci_half_bytes(target: str, *, sysfs: Path = SYSFS) -> int:
    """What each end may write into such a window, without opening it."""
    device, index = find_bar(target, sysfs=sysfs)
    return BarLayout.of(bar_of(device, index)[1]).half_bytes


def why_absent(scheme: str, target: str) -> str:
    """Why there is nothing to open, in words; "" when there is."""
    if scheme == "map":
        return "" if Path(target).exists() else f"no {target}"
    try:
        find_bar(target)
    except HalError as exc:
        return str(exc)
    return ""


def find_bar(target: str, *, sysfs: Path = SYSFS) -> tuple[Path, int]:
    """The function's directory in sysfs, and the number of the BAR. Raises Absent, Refused."""
    function, *below = target.split("/")
    bar = below.pop() if below else ""
    if not _ADDRESS.fullmatch(function) or not _BAR.fullmatch(bar):
        raise Refused(f"{target!r}: want 0000:01:00.0/bar2, or a port's address and what is below")
    path = sysfs / function
    _check_exists(path, target)
    for step in below:
        if not _BELOW.fullmatch(step):
            raise Refused(f"{target!r}: {step!r}; want a device and function such as 00.0")
        found = sorted(path.glob(f"{function[:4]}:*:{step}"))
        if not found:
            raise Absent(f"{target!r}: nothing is at {step} below {path.name}: the slot is empty")
        path = found[0]
    return path, int(bar[3:])


def bar_of(device: Path, index: int) -> tuple[int, int, int]:
    """Start, size and flags of a BAR, as line `index` of the file `resource` says."""
    try:
        lines = (device / "resource").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError as exc:
        raise hal_error(exc, f"{device.name}: its file resource") from exc
    words = lines[index].split() if index < len(lines) else []
    if len(words) != 3 or not all(map(_HEX.fullmatch, words)):
        raise Unavailable(f"{device}/resource: line {index} is not START END FLAGS")
    start, end, flags = (int(word, 16) for word in words)
    if end < start:
        raise Unavailable(f"{device}/resource: line {index} ends before it begins")
    return start, end - start + 1 if end else 0, flags


def why_gone(device: Path) -> str:
    """What config space says of a function whose memory reads wrongly; "" when it is there."""
    try:
        with open(device / "config", "rb") as file:
            vendor = file.read(2)
    except OSError as exc:
        return f"the kernel has removed it ({exc.strerror})"
    return "its config space reads as all ones: the link is down" if vendor == _VENDOR_GONE else ""


def _check_exists(path: Path, target: str) -> None:
    if not path.exists():
        raise Absent(f"{target!r}: no PCI function {path.name}; see {path.parent}")


def _enable(device: Path) -> None:
    """A function without a driver may not decode its BARs: reading them would give all ones."""
    try:
        if (device / "enable").read_text().strip() == "0":
            (device / "enable").write_text("1")
    except OSError as exc:
        raise hal_error(exc, f"{device.name}: enabling it") from exc


def _map(path: Path, size_bytes: int) -> mmap.mmap:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_SYNC)
    except FileNotFoundError as exc:
        raise Absent(f"{path}: {exc.strerror}") from exc
    except OSError as exc:
        raise hal_error(exc, f"opening {path}") from exc
    try:
        return mmap.mmap(fd, size_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    except (OSError, ValueError) as exc:  # ValueError: longer than the file
        raise Unavailable(f"mapping {size_bytes} B of {path}: {exc}") from exc
    finally:
        os.close(fd)


def _size_of(path: str) -> int:
    try:
        status = os.stat(path)
    except FileNotFoundError as exc:
        raise Absent(f"{path}: {exc.strerror}") from exc
    except OSError as exc:
        raise hal_error(exc, path) from exc
    if stat.S_ISREG(status.st_mode):
        return status.st_size
    try:  # devdax: Documentation/ABI/testing/sysfs-bus-dax
        return int((DAX / Path(path).name / "size").read_text())
    except (OSError, ValueError) as exc:
        raise Unavailable(f"{path}: its size is not known; say it with ?bytes=N") from exc
