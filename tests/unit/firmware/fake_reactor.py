"""A reactor whose time and readiness the test moves by hand."""

import heapq
from collections.abc import Callable

from hal.ports import Event


class FakeReactor:
    def __init__(self) -> None:
        self.time_ns = 1_000_000_000
        self.watches: dict[int, tuple[Event, Callable[[Event], None]]] = {}
        self._timers: list[tuple[int, int, list[Callable[[], None] | None]]] = []
        self._posted: list[Callable[[], None]] = []
        self._seq = 0

    def now_ns(self) -> int:
        return self.time_ns

    def post(self, call: Callable[[], None]) -> None:
        self._posted.append(call)

    def call_at(self, when_ns: int, call: Callable[[], None]) -> Callable[[], None]:
        cell: list[Callable[[], None] | None] = [call]
        self._seq += 1
        heapq.heappush(self._timers, (when_ns, self._seq, cell))

        def cancel() -> None:
            cell[0] = None

        return cancel

    def watch(self, handle: int, events: Event, call: Callable[[Event], None]) -> None:
        assert events, "a watch for nothing"
        self.watches[handle] = (events, call)

    def unwatch(self, handle: int) -> None:
        self.watches.pop(handle, None)

    def run_posted(self) -> None:
        while self._posted:
            self._posted.pop(0)()

    def advance(self, delta_ns: int) -> None:
        """Run everything that falls due in the next `delta_ns`, in order."""
        end_ns = self.time_ns + delta_ns
        self.run_posted()
        while self._timers and self._timers[0][0] <= end_ns:
            when_ns, _, cell = heapq.heappop(self._timers)
            self.time_ns = max(self.time_ns, when_ns)
            if cell[0] is not None:
                cell[0]()
            self.run_posted()
        self.time_ns = end_ns
