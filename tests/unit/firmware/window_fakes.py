"""Both ends of a window in one process, on a time that only the test moves."""

import heapq
import random
import struct
from collections import deque
from collections.abc import Callable

from hal.errors import PeerGone, Refused
from hal.ports import Buffer, Event

MS = 1_000_000


class FakeReactor:
    """`hal.ports.Reactor` with virtual time."""

    def __init__(self) -> None:
        self.time_ns = 0
        self.step_ns = 0
        self._mail_next = True  # handles and posted calls take turns, as in a loop
        self._mailbox: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[int, int, list[Callable[[], None] | None]]] = []
        self._count = 0
        self.watches: dict[int, Callable[[Event], None]] = {}
        self.ready: dict[int, Event] = {}

    def now_ns(self) -> int:
        return self.time_ns

    def post(self, call: Callable[[], None]) -> None:
        self._mailbox.append(call)

    def call_at(self, when_ns: int, call: Callable[[], None]) -> Callable[[], None]:
        cell: list[Callable[[], None] | None] = [call]
        self._count += 1
        heapq.heappush(self._timers, (when_ns, self._count, cell))

        def cancel() -> None:
            cell[0] = None

        return cancel

    def watch(self, handle: int, events: Event, call: Callable[[Event], None]) -> None:
        self.watches[handle] = call

    def unwatch(self, handle: int) -> None:
        self.watches.pop(handle, None)

    def step(self) -> bool:
        """One due timer, ready handle or posted call; it takes `step_ns`."""
        if self._timers and self._timers[0][0] <= self.time_ns:
            cell = heapq.heappop(self._timers)[2]
            call, cell[0] = cell[0], None
            if call is not None:
                call()
        elif self._mailbox and self._mail_next:
            self._mail_next = False
            self._mailbox.popleft()()
        elif handle := next((handle for handle in self.ready if handle in self.watches), None):
            self._mail_next = True
            self.watches[handle](self.ready[handle])
        elif self._mailbox:
            self._mailbox.popleft()()
        else:
            return False
        self.time_ns += self.step_ns
        return True

    def settle(self, limit: int = 100_000) -> None:
        """Until nothing is left to do now."""
        for _ in range(limit):
            if not self.step():
                return
        raise AssertionError("never settles")

    def advance(self, ns: int) -> None:
        """Let time go by, with all that happens on the way."""
        end_ns = self.time_ns + ns
        while self.time_ns < end_ns:
            if not self.step():
                next_ns = self._timers[0][0] if self._timers else end_ns
                self.time_ns = min(next_ns, end_ns)

    def run_until(self, check: Callable[[], bool], limit_ms: int = 600_000) -> None:
        """Until `check()` holds, looked at after each step."""
        end_ns = self.time_ns + limit_ms * MS
        while not check():
            assert self.time_ns < end_ns, "what was waited for did not happen"
            if not self.step():
                assert self._timers, "nothing will ever happen again"
                self.time_ns = max(self.time_ns, self._timers[0][0])


class SeededEntropy:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def random_bytes(self, length: int) -> bytes:
        return self._random.randbytes(length)


class FakeWindow:
    """One end; `tx` and `rx` are the halves. `hook` runs before each access."""

    def __init__(self, tx: bytearray, rx: bytearray) -> None:
        self.tx, self.rx = tx, rx
        self.hook: Callable[[], None] = lambda: None
        self.all_ones = False
        self.dead: Exception | None = None

    @property
    def tx_bytes(self) -> int:
        return len(self.tx)

    @property
    def rx_bytes(self) -> int:
        return len(self.rx)

    def _check(self, half: bytearray, offset: int, length: int) -> None:
        self.hook()
        if self.dead is not None:
            raise self.dead
        if offset < 0 or length < 0 or offset + length > len(half):
            raise Refused(f"{length} B at {offset}")

    def write(self, offset: int, data: Buffer) -> None:
        self._check(self.tx, offset, len(data))
        self.tx[offset : offset + len(data)] = data

    def read(self, offset: int, length: int) -> memoryview:
        self._check(self.rx, offset, length)
        if self.all_ones:
            return memoryview(b"\xff" * length)
        return memoryview(self.rx)[offset : offset + length].toreadonly()

    def publish(self, offset: int, value: int) -> None:
        assert offset % 4 == 0
        self._check(self.tx, offset, 4)
        struct.pack_into("<I", self.tx, offset, value)

    def acquire(self, offset: int) -> int:
        assert offset % 4 == 0
        self._check(self.rx, offset, 4)
        if self.all_ones:
            return 0xFFFFFFFF
        return int(struct.unpack_from("<I", self.rx, offset)[0])

    def close(self) -> None:
        self.dead = Refused("closed")


class FakeDoorbell:
    def __init__(self, reactor: FakeReactor, handle: int) -> None:
        self._reactor, self.handle = reactor, handle
        self.peer: FakeDoorbell | None = None
        self.deaf = False  # its rings are lost
        self.gone = False  # its far end is dead
        self.rings = 0

    def ring(self) -> None:
        if self.gone:
            raise PeerGone("far end")
        self.rings += 1
        if not self.deaf and self.peer is not None:
            self._reactor.ready[self.peer.handle] = Event.READ

    def clear(self) -> None:
        self._reactor.ready.pop(self.handle, None)
        if self.gone:
            self._reactor.ready[self.handle] = Event.READ | Event.HANGUP
            raise PeerGone("far end")

    def close(self) -> None:
        pass


class WindowRig:
    """Two halves and two bells; ends are made (and remade) by the test."""

    def __init__(self, half_bytes: int = 1 << 16) -> None:
        self.reactor = FakeReactor()
        self.halves = [bytearray(half_bytes), bytearray(half_bytes)]
        self.bells = [FakeDoorbell(self.reactor, 100), FakeDoorbell(self.reactor, 101)]
        self.bells[0].peer, self.bells[1].peer = self.bells[1], self.bells[0]

    def window(self, side: int) -> FakeWindow:
        return FakeWindow(self.halves[side], self.halves[1 - side])
