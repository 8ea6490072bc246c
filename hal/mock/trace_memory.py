"""The `TraceMemory` port: bytes that belong to the machine and not to the program on it.

Not modelled: a write that a kill cuts short (`tear` does it on demand).
"""

from hal.errors import Refused
from hal.ports import Buffer


class MockTraceMemory:
    """Opened again on the same `kept`, it shows what the program before has written."""

    def __init__(self, kept: bytearray) -> None:
        self._kept = kept

    @property
    def size_bytes(self) -> int:
        return len(self._kept)

    def write(self, offset: int, data: Buffer) -> None:
        end = offset + len(data)
        if not 0 <= offset <= end <= len(self._kept):
            raise Refused(f"trace memory: {offset} to {end} of {len(self._kept)} bytes")
        self._kept[offset:end] = data

    def read(self) -> bytes:
        return bytes(self._kept)

    def close(self) -> None:
        """Nothing to let go of."""

    def tear(self, offset: int, count: int) -> None:
        """Fault: the last write stopped here, and what was there before is still there."""
        for index in range(offset, min(offset + count, len(self._kept))):
            self._kept[index] ^= 0xFF
