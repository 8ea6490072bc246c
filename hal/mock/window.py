"""Windows and doorbells: two one-way halves of memory, and a hint each way.

A write is visible at once. The halves live in the kernel and outlive their users; `open` gives
one side's view. Faults are set on the pair, per direction: "ab" is what a writes and b reads.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hal.errors import PeerGone, Refused
from hal.mock.node import HANGUP, READ
from hal.ports import Buffer

if TYPE_CHECKING:
    from hal.mock.kernel import VirtualKernel
    from hal.mock.node import Node

WORD_BYTES: Final = 4
ALL_ONES: Final = 0xFFFF_FFFF
STORM_LIMIT: Final = 1_000_000  # rings of one storm


class _Half:
    """Memory that one side writes and the other reads."""

    def __init__(self, size_bytes: int) -> None:
        self.memory = mmap.mmap(-1, size_bytes)  # untouched pages cost nothing, a bytearray's do
        self.view = memoryview(self.memory)
        self.size_bytes = size_bytes
        self.cut = False  # writes vanish: posted writes to a device that is gone
        self.all_ones = False  # reads give ones: the reader's own path is gone (fault P3)
        self.flip_writes: list[int] = []  # bytes from the start of coming writes to turn over
        self.writes = 0
        self.lost_writes = 0

    def store(self, offset: int, data: Buffer) -> None:
        self.writes += 1
        if self.cut:
            self.lost_writes += 1
            return
        length = len(data)
        self.view[offset : offset + length] = data
        if self.flip_writes and length:
            self.view[offset + self.flip_writes.pop(0) % length] ^= 0x01


class MockWindow:
    """One side's view: the `Window` port."""

    def __init__(self, tx: _Half, rx: _Half, name: str) -> None:
        self._tx, self._rx = tx, rx
        self._name = name
        self._closed = False

    @property
    def tx_bytes(self) -> int:
        return self._tx.size_bytes

    @property
    def rx_bytes(self) -> int:
        return self._rx.size_bytes

    def write(self, offset: int, data: Buffer) -> None:
        """Copy into tx. Raises Refused outside it."""
        view = memoryview(data).cast("B")
        self._check("write", offset, len(view), self._tx.size_bytes)
        self._tx.store(offset, view)

    def read(self, offset: int, length: int) -> memoryview:
        """A read-only view of rx. Raises Refused outside it."""
        self._check("read", offset, length, self._rx.size_bytes)
        if self._rx.all_ones:
            return memoryview(b"\xff" * length)
        return self._rx.view[offset : offset + length].toreadonly()

    def publish(self, offset: int, value: int) -> None:
        """One aligned 32-bit store to tx. Raises Refused outside it or when unaligned."""
        self._check_word("publish", offset, self._tx.size_bytes)
        if not 0 <= value <= ALL_ONES:
            raise Refused(f"{self._name}: publish of {value}, want 32 bits")
        self._tx.store(offset, struct.pack("<I", value))

    def acquire(self, offset: int) -> int:
        """One aligned 32-bit load from rx. Raises Refused outside it or when unaligned."""
        self._check_word("acquire", offset, self._rx.size_bytes)
        if self._rx.all_ones:
            return ALL_ONES
        (value,) = struct.unpack_from("<I", self._rx.view, offset)
        return int(value)

    def close(self) -> None:
        """Twice is fine; views that were given out stay valid."""
        self._closed = True

    def _check(self, what: str, offset: int, length: int, limit: int) -> None:
        if self._closed:
            raise Refused(f"{self._name}: {what} after close")
        if offset < 0 or length < 0 or offset + length > limit:
            raise Refused(f"{self._name}: {what} of {length} bytes at {offset}; it has {limit}")

    def _check_word(self, what: str, offset: int, limit: int) -> None:
        self._check(what, offset, WORD_BYTES, limit)
        if offset % WORD_BYTES:
            raise Refused(f"{self._name}: {what} at {offset} is not aligned to {WORD_BYTES}")


class MockDoorbell:
    """One side's bell: the `Doorbell` port."""

    def __init__(self, pair: MockWindowPair, side: str, node: Node) -> None:
        self._pair = pair
        self.side = side
        self._closed = False
        self._handle = pair.kernel.open_handle(node, self, self.close)
        self.rung = 0  # rings that came since the last clear

    @property
    def handle(self) -> int:
        return self._handle.number

    def ring(self) -> None:
        """Wake the far end. Raises PeerGone when it is dead."""
        if self._closed:
            raise PeerGone(f"{self._pair.name} doorbell {self.side}: used after its close")
        self._pair.carry(self)

    def clear(self) -> None:
        """Forget the rings that have come. Raises PeerGone when the far end is dead."""
        self.rung = 0
        self.refresh()
        if self._pair.peer_gone(self.side):
            raise PeerGone(f"{self._pair.name} doorbell {self.side}: the far end is gone")

    def close(self) -> None:
        """Twice is fine; the far end sees it as PeerGone."""
        if not self._closed:
            self._closed = True
            self._pair.kernel.close_handle(self._handle)
            self._pair.bell_closed(self)

    def arrive(self) -> None:
        """For the pair: a ring has come."""
        if not self._closed:
            self.rung += 1
            self.refresh()

    def refresh(self) -> None:
        """For the pair: say again whether the handle is ready."""
        ready = READ if self.rung else 0
        if self._pair.peer_gone(self.side):
            ready |= READ | HANGUP
        if ready != self._handle.ready:
            self._handle.set(ready)


class MockWindowPair:
    """A window with its doorbells: the fabric between a card ("a") and a CNM ("b")."""

    def __init__(
        self,
        kernel: VirtualKernel,
        name: str,
        *,
        ab_bytes: int,
        ba_bytes: int | None = None,
        ring_ns: int = 0,
    ) -> None:
        """`ab_bytes` is what a writes; the other half is as large unless said. `ring_ns` is the
        time that a ring takes."""
        self.kernel = kernel
        self.name = name
        self.halves = {
            "ab": _Half(ab_bytes),
            "ba": _Half(ab_bytes if ba_bytes is None else ba_bytes),
        }
        self.ring_ns = ring_ns
        self.lose_rings = 0  # so many of the next rings are lost
        self.lose_share = 0.0  # of the others, by lot
        self.lost = 0
        self.stormed = 0  # rings out of nowhere that have reached somebody
        self._rng = kernel.rng(f"{name} ring")
        self._bells: dict[str, MockDoorbell] = {}
        self._gone: set[str] = set()

    def open_window(self, side: str) -> MockWindow:
        """This side's view of both halves."""
        mine, theirs = ("ab", "ba") if _checked(side) == "a" else ("ba", "ab")
        return MockWindow(self.halves[mine], self.halves[theirs], f"{self.name} window {side}")

    def open_doorbell(self, side: str, node: Node) -> MockDoorbell:
        """This side's bell; a side that was gone is back. The last one opened gets the rings."""
        bell = MockDoorbell(self, _checked(side), node)
        self._bells[side] = bell
        self._gone.discard(side)
        self._tell(side)
        return bell

    # --- faults ---

    def cut(self, on: bool = True) -> None:
        """The fabric is cut: writes vanish, rings are lost, nobody is told."""
        for half in self.halves.values():
            half.cut = on
        self.lose_share = 1.0 if on else 0.0
        self.kernel.note(self.name, "cut", str(on))

    def corrupt(self, direction: str, offset: int, mask: int = 0x01) -> None:
        """Turn bits of one byte over that lies in a half now."""
        self.halves[direction].view[offset] ^= mask
        self.kernel.note(self.name, "corrupt", f"{direction} {offset}")

    def corrupt_next_write(self, direction: str, offset: int = 0) -> None:
        """Turn one bit over in the next write of this direction, `offset` bytes into it."""
        self.halves[direction].flip_writes.append(offset)

    def all_ones(self, direction: str, on: bool = True) -> None:
        """Reads of this direction give ones (fault P3)."""
        self.halves[direction].all_ones = on
        self.kernel.note(self.name, "all_ones", f"{direction} {on}")

    def lose_peer(self, side: str) -> None:
        """This side is dead: the other gets HANGUP, and PeerGone from its bell."""
        self._gone.add(side)
        self.kernel.note(self.name, "lose_peer", side)
        self._tell(side)

    def storm(self, side: str, period_ns: int, count: int) -> Callable[[], None]:
        """Rings out of nowhere (fault P7): `count` of them reach this side; returns the stop."""
        if not 0 < count <= STORM_LIMIT or period_ns <= 0:
            raise ValueError(
                f"a storm of {count} rings every {period_ns} ns; want 1..{STORM_LIMIT}"
            )
        left = [count]

        def blow() -> None:
            if left[0] > 0:
                left[0] -= 1
                self.stormed += side in self._bells
                self._deliver(side)
                self.kernel.after(period_ns, blow)

        def stop() -> None:
            left[0] = 0

        self.kernel.note(self.name, "storm", f"{side} {count}")
        self.kernel.after(period_ns, blow)
        return stop

    def unheard(self, side: str) -> int:
        """Rings that reached this side and that nobody has cleared yet."""
        bell = self._bells.get(side)
        return 0 if bell is None else bell.rung

    # --- for the bells ---

    def carry(self, bell: MockDoorbell) -> None:
        if self.peer_gone(bell.side):
            raise PeerGone(f"{self.name} doorbell {bell.side}: the far end is gone")
        if self.lose_rings > 0:
            self.lose_rings -= 1
            self.lost += 1
            self.kernel.note(self.name, "lost_ring", bell.side)
        elif self.lose_share and self._rng.random() < self.lose_share:
            self.lost += 1
        elif self.ring_ns:
            self.kernel.after(self.ring_ns, lambda: self._deliver(_far(bell.side)))
        else:
            self._deliver(_far(bell.side))

    def peer_gone(self, side: str) -> bool:
        return _far(side) in self._gone

    def bell_closed(self, bell: MockDoorbell) -> None:
        if self._bells.get(bell.side) is bell:
            del self._bells[bell.side]
            self._gone.add(bell.side)
            self._tell(bell.side)

    def _deliver(self, side: str) -> None:
        bell = self._bells.get(side)
        if bell is not None:
            bell.arrive()

    def _tell(self, side: str) -> None:
        bell = self._bells.get(_far(side))
        if bell is not None:
            bell.refresh()


def _far(side: str) -> str:
    return "b" if side == "a" else "a"


def _checked(side: str) -> str:
    if side not in ("a", "b"):
        raise Refused(f"side {side!r}; a window has sides a and b")
    return side
