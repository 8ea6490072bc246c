"""True time, the clocks that drift from it, and the processes that live on them.

An `Oscillator` runs at 1 + ppm/10^6 of true time. A `Host` is one process: a reactor on such a
clock that can be frozen (SIGSTOP: what falls due meanwhile comes late, in any order) and killed.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Final

from hal.ports import Event

MS: Final = 1_000_000
PPM: Final = 1_000_000
Call = Callable[[], None]


class Kernel:
    """Events in the order of true time, in ns."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now = 0
        self.events = 0
        self._heap: list[tuple[int, int, Call]] = []
        self._seq = 0

    def at(self, when: int, call: Call) -> None:
        self._seq += 1
        heapq.heappush(self._heap, (max(when, self.now), self._seq, call))

    def run(self, until: int) -> None:
        """All events up to `until`."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, call = heapq.heappop(heap)
            self.events += 1
            call()


class Oscillator:
    """CLOCK_BOOTTIME of one machine: off by `ppm`, and by where it began."""

    def __init__(self, kernel: Kernel, ppm: int, begin_ns: int) -> None:
        self._kernel = kernel
        self._ppm = ppm
        self._begin_ns = begin_ns

    def now_ns(self) -> int:
        now = self._kernel.now
        return self._begin_ns + now + now * self._ppm // PPM

    def true(self, local_ns: int) -> int:
        """The first true moment at which this clock shows `local_ns` or more."""
        span = local_ns - self._begin_ns
        true = span * PPM // (PPM + self._ppm)
        while true + true * self._ppm // PPM < span:
            true += 1
        return true


class Host:
    """One process as a `hal.ports.Reactor`."""

    def __init__(self, kernel: Kernel, clock: Oscillator) -> None:
        self.kernel = kernel
        self.now_ns = clock.now_ns
        self.alive = True
        self.frozen_until = 0  # true time
        self._clock = clock
        self._socket: deque[Call] = deque()  # what came over it and was not read yet
        self._thaws = False

    def freeze(self, span_ns: int) -> None:
        self.frozen_until = max(self.frozen_until, self.kernel.now + span_ns)

    def run(self, call: Call, *, in_order: bool = False) -> None:
        """`call` as soon as this process is not frozen; never, if it is dead. What waited comes in
        any order, but for what comes `in_order`, over one socket."""
        if not self.alive:
            return
        if in_order:
            self._socket.append(call)
            self._read()
        elif self.kernel.now < self.frozen_until:
            jitter_ns = int(self.kernel.rng.random() * MS)
            self.kernel.at(self.frozen_until + jitter_ns, lambda: self.run(call))
        else:
            call()

    def _read(self) -> None:
        """All that the socket has, unless it is frozen: then when it is not, however often that
        was put off meanwhile."""
        while self._socket and self.alive:
            if self.kernel.now < self.frozen_until:
                if not self._thaws:
                    self._thaws = True
                    self.kernel.at(self.frozen_until, self._thaw)
                return
            self._socket.popleft()()

    def _thaw(self) -> None:
        self._thaws = False
        self._read()

    def call_at(self, when_ns: int, call: Call) -> Call:
        cell: list[Call | None] = [call]

        def fire() -> None:
            waiting = cell[0]
            if waiting is None or not self.alive:
                return
            if self.kernel.now < self.frozen_until:
                self.run(fire)
                return
            cell[0] = None
            waiting()

        def cancel() -> None:
            cell[0] = None

        self.kernel.at(self._clock.true(when_ns), fire)
        return cancel

    def call_later(self, delay_ns: int, call: Call) -> Call:
        return self.call_at(self.now_ns() + delay_ns, call)

    def post(self, call: Call) -> None:
        self.kernel.at(self.kernel.now, lambda: self.run(call))

    def watch(self, handle: int, events: Event, call: Callable[[Event], None]) -> None:
        raise NotImplementedError("nothing here has a handle")

    def unwatch(self, handle: int) -> None:
        raise NotImplementedError("nothing here has a handle")
