"""Device addresses within the ranges that an IOMMU translates, given out first fit from below."""

import bisect
from collections.abc import Sequence
from typing import Final

from hal.errors import Refused, StoreFull

IOVA_LOWEST: Final = 0x1_0000  # 0 is what a register holds that nobody has set


class IovaAllocator:
    """One entry a mapping that is out: whoever maps them bounds those (the kernel: 65,535)."""

    def __init__(self, ranges: Sequence[tuple[int, int]], page_bytes: int) -> None:
        """`ranges` are (first, last) addresses, both included. Raises Refused for none."""
        self.page_bytes = page_bytes
        self.ranges = _whole_pages(ranges, page_bytes)
        if not self.ranges:
            raise Refused(f"no usable device address in {len(ranges)} ranges of the IOMMU")
        self._starts: list[int] = []
        self._sizes: dict[int, int] = {}

    @property
    def taken(self) -> int:
        """How many are out."""
        return len(self._starts)

    def allocate(self, size_bytes: int, address_bits: int = 64) -> int:
        """The lowest free address, all of the piece below 2**address_bits. Raises Refused for a
        size that is not whole pages, StoreFull when there is no room."""
        if size_bytes <= 0 or size_bytes % self.page_bytes:
            raise Refused(
                f"{size_bytes} B of device address space: want a multiple of {self.page_bytes} B"
            )
        if not 1 <= address_bits <= 64:
            raise Refused(f"a device with {address_bits} address bits; want 1 to 64")
        limit = 1 << address_bits
        for first, last in self.ranges:
            end = min(last + 1, limit)
            at = first
            index = bisect.bisect_left(self._starts, at)
            while index < len(self._starts) and at + size_bytes <= end:
                start = self._starts[index]
                if at + size_bytes <= start:
                    break
                at = start + self._sizes[start]
                index += 1
            if at + size_bytes <= end:
                bisect.insort(self._starts, at)
                self._sizes[at] = size_bytes
                return at
        raise StoreFull(
            f"no {size_bytes} B of device addresses below 2^{address_bits} left; {self.taken} "
            f"buffers of {sum(self._sizes.values())} B are out"
        )

    def free(self, iova: int) -> None:
        """Give one back. Raises Refused for one that is not out."""
        if self._sizes.pop(iova, None) is None:
            raise Refused(f"device address {iova:#x} was not given out")
        self._starts.remove(iova)


def _whole_pages(ranges: Sequence[tuple[int, int]], page_bytes: int) -> tuple[tuple[int, int], ...]:
    found = []
    for first, last in sorted(ranges):
        start = -(-max(first, IOVA_LOWEST) // page_bytes) * page_bytes
        end = (last + 1) // page_bytes * page_bytes
        if start < end:
            found.append((start, end - 1))
    return tuple(found)
