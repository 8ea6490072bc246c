"""What the daemon did last, readable after it has died in any way: `apf events --last-crash`.

A ring of entries in memory that outlives the process (`hal.service_ports.TraceMemory`), without a
write pointer that could be torn: whoever reads it looks for entries at each 16th byte and puts
them in the order of their numbers.

    head      32 B: magic "APFTRACE", state (1 running, 0 ended well), pid, wall clock in ns
    entry     magic 0x5AFE, kind, length, number, CLOCK_BOOTTIME in ns; text (UTF-8); CRC-32
              of all that; padded to 16 B

An entry that is cut or half overwritten fails its CRC and is left out. It says nothing of a
heartbeat: one costs about 2 us, and the ring would hold nothing else.
"""

import struct
import traceback
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from hal.errors import Refused
from hal.service_ports import TraceMemory

RING_BYTES: Final = 128 << 10  # a dump stays below the 200 KB that one may have
TEXT_LIMIT_BYTES: Final = 480
TRACEBACK_LIMIT_BYTES: Final = 6_000
HEAD: Final = struct.Struct("<8sIIQ8x")
MAGIC: Final = b"APFTRACE"
ENTRY: Final = struct.Struct("<HBxHxxIQ")
ENTRY_MAGIC: Final = 0x5AFE
ENTRY_MARK: Final = ENTRY_MAGIC.to_bytes(2, "little")
STEP: Final = 16
CRC_BYTES: Final = 4
RUNNING: Final = 1
LEAST_BYTES: Final = 16 << 10  # a traceback and something before it


class Trace(IntEnum):
    """What an entry is about. Append-only: the value is in the ring."""

    LIFE = 1  # started, stopping
    EVENT = 2
    COMMAND = 3  # sent to a module, and its end
    COMMIT = 4
    TURN = 5  # one of the loop that was over its budget
    SIGNAL = 6
    WATCHDOG = 7  # a beat that was withheld
    FAULT = 8  # an exception that nobody handled


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    number: int
    mono_ns: int
    kind: int  # a `Trace`, or one of a version to come
    text: str

    def to_json(self) -> dict[str, object]:
        known = self.kind in Trace.__members__.values()
        return {
            "seq": self.number,
            "mono_ms": self.mono_ns // 1_000_000,
            "kind": Trace(self.kind).name.lower() if known else f"kind {self.kind}",
            "text": self.text,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What a ring holds."""

    pid: int
    started_wall_ns: int
    running: bool  # it did not say that it ended
    entries: tuple[Entry, ...]  # oldest first


class FlightRecorder:
    """The writer. Loop thread only; a signal handler may write between two of its entries."""

    def __init__(self, memory: TraceMemory, now_ns: Callable[[], int]) -> None:
        """Raises Refused for a memory that is too small to be of use."""
        if memory.size_bytes < LEAST_BYTES:
            raise Refused(f"a trace ring of {memory.size_bytes} B, wanted {LEAST_BYTES} at least")
        self._memory = memory
        self._now_ns = now_ns
        self._at = HEAD.size
        self._number = 0
        self._head = (0, 0)
        self._noted: BaseException | None = None

    def begin(self, *, pid: int, wall_ns: int, text: str) -> None:
        """From here on the ring is this process's; what was in it is gone."""
        self._memory.write(0, bytes(self._memory.size_bytes))
        self._head = (pid, wall_ns)
        self._memory.write(0, HEAD.pack(MAGIC, RUNNING, pid, wall_ns))
        self.note(Trace.LIFE, text)

    def end(self, text: str) -> None:
        """It ends well: nobody need look at it."""
        self.note(Trace.LIFE, text)
        self._memory.write(0, HEAD.pack(MAGIC, 0, *self._head))
        self._memory.close()

    def note(self, kind: Trace, text: str, *, limit_bytes: int = TEXT_LIMIT_BYTES) -> None:
        """One entry; a text that is too long loses its end."""
        data = text.encode(errors="replace")[:limit_bytes]
        self._number = number = (self._number + 1) & 0xFFFF_FFFF
        body = ENTRY.pack(ENTRY_MAGIC, kind, len(data), number, self._now_ns()) + data
        whole = body + zlib.crc32(body).to_bytes(CRC_BYTES, "little")
        size = -(-len(whole) // STEP) * STEP
        at = self._at
        if at + size > self._memory.size_bytes:
            at = HEAD.size
        self._at = at + size  # first: what interrupts us writes behind this one
        self._memory.write(at, whole)

    def on_fault(self, exc: BaseException) -> bool:
        """For `Loop`: note it, and let it end the process as it would have."""
        self.note_fault(exc)
        return False

    def note_fault(self, exc: BaseException) -> None:
        """An exception that nobody handled, with where it came from; once."""
        if exc is self._noted:
            return
        self._noted = exc
        words = "".join(traceback.format_exception(exc))
        self.note(Trace.FAULT, words[-TRACEBACK_LIMIT_BYTES:], limit_bytes=TRACEBACK_LIMIT_BYTES)


def read_ring(data: bytes) -> Recording | None:
    """What a ring holds, whatever was cut in it; None if it is none of ours."""
    if len(data) < LEAST_BYTES or data[: len(MAGIC)] != MAGIC:
        return None
    _magic, state, pid, wall_ns = HEAD.unpack_from(data)
    entries: dict[int, Entry] = {}
    at = data.find(ENTRY_MARK, HEAD.size)
    while at >= 0:
        entry = _entry_at(data, at) if (at - HEAD.size) % STEP == 0 else None
        if entry is not None:
            entries[entry.number] = entry
        at = data.find(ENTRY_MARK, at + 1)
    newest = max(entries, default=0)
    first = newest
    while first - 1 in entries:  # older ones behind a gap are leftovers of the lap before
        first -= 1
    kept = tuple(entries[number] for number in range(first, newest + 1) if number in entries)
    return Recording(pid=pid, started_wall_ns=wall_ns, running=state != 0, entries=kept)


def _entry_at(data: bytes, at: int) -> Entry | None:
    if at + ENTRY.size > len(data):
        return None
    _mark, kind, length, number, mono_ns = ENTRY.unpack_from(data, at)
    end = at + ENTRY.size + length
    if end + CRC_BYTES > len(data):
        return None
    if zlib.crc32(data[at:end]) != int.from_bytes(data[end : end + CRC_BYTES], "little"):
        return None
    text = data[at + ENTRY.size : end].decode(errors="replace")
    return Entry(number=number, mono_ns=mono_ns, kind=kind, text=text)
