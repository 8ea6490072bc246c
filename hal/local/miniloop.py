"""The keeper's own event loop: epoll, timers, signals. It has the shape of `hal.ports.Reactor`.

The daemon's loop lives in firmware, which hal may not import; the keeper needs less: real time
only, no budget, no statistics.
"""

import contextlib
import heapq
import os
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from hal.ports import Event

_EVENTS_PER_TURN: Final = 64
_NS_PER_S: Final = 1_000_000_000


class MiniLoop:
    """Handlers run to completion on the thread that calls `run`."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watches: dict[int, Callable[[Event], None]] = {}
        # (due, order, call); a cancelled one keeps its place with None until it is due
        self._timers: list[tuple[int, int, list[Callable[[], None] | None]]] = []
        self._order = 0
        self._posted: deque[Callable[[], None]] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopped = False
        self.watch(self._wake_fd, Event.READ, self._on_wake)

    def now_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def post(self, call: Callable[[], None]) -> None:
        self._posted.append(call)
        with contextlib.suppress(BlockingIOError):  # the counter is full: it wakes anyway
            os.eventfd_write(self._wake_fd, 1)

    def call_at(self, when_ns: int, call: Callable[[], None]) -> Callable[[], None]:
        cell: list[Callable[[], None] | None] = [call]
        self._order += 1
        heapq.heappush(self._timers, (when_ns, self._order, cell))

        def cancel() -> None:
            cell[0] = None

        return cancel

    def call_later(self, delay_ns: int, call: Callable[[], None]) -> Callable[[], None]:
        return self.call_at(self.now_ns() + delay_ns, call)

    def watch(self, handle: int, events: Event, call: Callable[[Event], None]) -> None:
        mask = select.EPOLLIN if events & Event.READ else 0
        mask |= select.EPOLLOUT if events & Event.WRITE else 0
        if handle in self._watches:
            self._epoll.modify(handle, mask)
        else:
            self._epoll.register(handle, mask)
        self._watches[handle] = call

    def unwatch(self, handle: int) -> None:
        if self._watches.pop(handle, None) is not None:
            with contextlib.suppress(OSError, ValueError):  # closed already: epoll forgot it
                self._epoll.unregister(handle)

    def run(self) -> None:
        """Until `stop`."""
        self._stopped = False
        while not self._stopped:
            self.turn(None)

    def stop(self) -> None:
        self._stopped = True

    def turn(self, limit_ns: int | None) -> None:
        """Wait for something, at most `limit_ns`, and handle what came."""
        for fd, mask in self._epoll.poll(self._wait_s(limit_ns), _EVENTS_PER_TURN):
            call = self._watches.get(fd)
            if call is not None:  # else an earlier handler of this turn unwatched it
                call(_event_of(mask))
        now_ns = self.now_ns()
        while self._timers and self._timers[0][0] <= now_ns:
            cell = heapq.heappop(self._timers)[2]
            if cell[0] is not None:
                cell[0]()

    def close(self) -> None:
        self.unwatch(self._wake_fd)
        os.close(self._wake_fd)
        self._epoll.close()

    def _wait_s(self, limit_ns: int | None) -> float:
        while self._timers and self._timers[0][2][0] is None:
            heapq.heappop(self._timers)
        due_ns = self._timers[0][0] - self.now_ns() if self._timers else None
        waits = [wait for wait in (due_ns, limit_ns) if wait is not None]
        return max(0, min(waits)) / _NS_PER_S if waits else -1

    def _on_wake(self, _event: Event) -> None:
        os.eventfd_read(self._wake_fd)
        for _ in range(len(self._posted)):  # what these post in turn waits for the next turn
            self._posted.popleft()()


def _event_of(mask: int) -> Event:
    event = Event(0)
    if mask & select.EPOLLIN:
        event |= Event.READ
    if mask & select.EPOLLOUT:
        event |= Event.WRITE
    if mask & (select.EPOLLHUP | select.EPOLLERR):
        event |= Event.HANGUP
    return event
