"""The event loop (DESIGN D2): readiness from the clock, a timer heap, a bounded mailbox.

One thread, handlers run to completion. The clock decides how to wait, so that a virtual clock
runs an hour in milliseconds; everything else here is the same on both. An exception that leaves
a handler goes to the fault policy, which by default lets it end the process: a supervisor that
restarts a daemon with a journal beats a daemon that goes on with half a state.
"""

import heapq
from collections import deque
from collections.abc import Callable
from typing import Final

from hal.ports import Clock, Event

MAILBOX_LIMIT: Final = 65_536
MAILBOX_TURN: Final = 1024  # posted calls run in one turn, so that posting cannot starve timers
TURN_BUDGET_NS: Final = 50_000_000  # a longer turn is told: heartbeats wait meanwhile
CANCELLED_KEPT: Final = 64  # cancelled timers that are no matter, however few others there are
MS: Final = 1_000_000  # nanoseconds in a millisecond

Call = Callable[[], None]


class MailboxFullError(Exception):
    """More posted calls than anything on one card can have outstanding: a bug of ours."""


class Loop:
    """A `hal.ports.Reactor`. Only `post` may be called from another thread."""

    def __init__(
        self, clock: Clock, *, on_fault: Callable[[BaseException], bool] | None = None
    ) -> None:
        """`on_fault(exc)` decides about an exception from a handler: True goes on, else it is
        raised out of `step` or `run`."""
        self.clock = clock
        self._on_fault = on_fault
        self._mailbox: deque[Call] = deque()
        self._timers: list[tuple[int, int, list[Call | None]]] = []
        self._timer_seq = 0
        self._cancelled = 0  # of `_timers`
        self._watches: dict[int, Callable[[Event], None]] = {}
        self._running = False
        # when it was last asked what is ready: all that had come by then is dispatched before any
        # timer of the turn, so that silence is judged at this moment and not at a later one
        self.turn_ns = clock.now_ns()
        self.longest_turn_ns = 0  # worst stall seen; read and reset by the monitor
        self.turn_budget_ns = TURN_BUDGET_NS
        self.on_long_turn: Callable[[int], None] = lambda _spent_ns: None

    def now_ns(self) -> int:
        """CLOCK_BOOTTIME of the clock, in ns."""
        return self.clock.now_ns()

    def post(self, call: Call) -> None:
        """Run `call` soon on the loop's thread. Raises MailboxFullError at MAILBOX_LIMIT."""
        if len(self._mailbox) >= MAILBOX_LIMIT:
            raise MailboxFullError(f"mailbox holds {MAILBOX_LIMIT} calls; the loop is stuck")
        self._mailbox.append(call)
        self.clock.wake()

    def call_at(self, when_ns: int, call: Call) -> Call:
        """Run `call` at `when_ns`, never before. Calling the result cancels it."""
        self._timer_seq += 1
        cell: list[Call | None] = [call]
        heapq.heappush(self._timers, (when_ns, self._timer_seq, cell))

        def cancel() -> None:
            if cell[0] is not None:
                cell[0] = None
                self._cancelled += 1
                if self._cancelled > CANCELLED_KEPT and 2 * self._cancelled > len(self._timers):
                    self._drop_cancelled()

        return cancel

    def call_later(self, delay_ns: int, call: Call) -> Call:
        """Run `call` after `delay_ns`. Calling the result cancels it."""
        return self.call_at(self.clock.now_ns() + delay_ns, call)

    def every(self, period_ns: int, call: Call) -> Call:
        """Run `call` each `period_ns`; beats that were missed are skipped, not made up for."""
        assert period_ns > 0
        state: dict[str, Call] = {}

        def beat() -> None:
            due = plan[0] + period_ns
            now = self.clock.now_ns()
            if due <= now:  # the loop was held up (or the machine slept): stay on the grid
                due += (now - due) // period_ns * period_ns + period_ns
            plan[0] = due
            state["cancel"] = self.call_at(due, beat)
            call()

        plan = [self.clock.now_ns() + period_ns]
        state["cancel"] = self.call_at(plan[0], beat)
        return lambda: state["cancel"]()

    def watch(self, handle: int, events: Event, call: Callable[[Event], None]) -> None:
        """Run `call(events)` whenever the handle is ready; replaces an earlier watch."""
        self.clock.watch(handle, events)
        self._watches[handle] = call

    def unwatch(self, handle: int) -> None:
        """Stop watching; an event of this turn that was not dispatched yet is dropped."""
        if self._watches.pop(handle, None) is not None:
            self.clock.unwatch(handle)

    def next_due_ns(self) -> int | None:
        """When `step` has work even if no handle becomes ready; None: never."""
        if self._mailbox:
            return self.clock.now_ns()
        timers = self._timers
        while timers and timers[0][2][0] is None:
            heapq.heappop(timers)
            self._cancelled -= 1
        return timers[0][0] if timers else None

    def step(self) -> bool:
        """Dispatch all that is ready now, without waiting. True if anything was done."""
        return self._turn(0)  # long past: nothing to wait for

    def run(self) -> None:
        """Run until `stop`."""
        self._running = True
        while self._running:
            self._turn(self.next_due_ns())

    def stop(self) -> None:
        """End `run` after this turn."""
        self._running = False
        self.clock.wake()

    def close(self) -> None:
        """Drop every watch, timer and posted call (a simulated kill, or the end)."""
        for handle in list(self._watches):
            self.unwatch(handle)
        self._timers.clear()
        self._cancelled = 0
        self._mailbox.clear()

    def _turn(self, until_ns: int | None) -> bool:
        now_ns = self.clock.now_ns
        ready = self.clock.wait(until_ns)
        start_ns = self.turn_ns = now_ns()
        done = False
        for handle, events in ready:
            call = self._watches.get(handle)
            if call is not None:
                done = True
                try:
                    call(events)
                except BaseException as exc:  # noqa: BLE001  the policy decides, see _fault
                    self._fault(exc)
        if self._timers and self._timers[0][0] <= start_ns:
            done |= self._run_timers(start_ns)
        if self._mailbox:
            done |= self._run_mailbox()
        spent_ns = now_ns() - start_ns
        if spent_ns > self.longest_turn_ns:
            self.longest_turn_ns = spent_ns
        if spent_ns > self.turn_budget_ns:
            self.on_long_turn(spent_ns)
        return done

    def _run_timers(self, now_ns: int) -> bool:
        timers, done = self._timers, False
        newest = self._timer_seq  # one armed by a handler waits for the next turn
        while timers and timers[0][0] <= now_ns and timers[0][1] <= newest:
            cell = heapq.heappop(timers)[2]
            call, cell[0] = cell[0], None
            if call is None:
                self._cancelled -= 1
                continue
            done = True
            try:
                call()
            except BaseException as exc:  # noqa: BLE001  the policy decides, see _fault
                self._fault(exc)
        return done

    def _drop_cancelled(self) -> None:
        """In place: whoever goes through the heap goes on in it. A deadline that is never met
        lies seconds ahead, and a burst of requests would leave thousands of them there."""
        self._timers[:] = [timer for timer in self._timers if timer[2][0] is not None]
        heapq.heapify(self._timers)
        self._cancelled = 0

    def _run_mailbox(self) -> bool:
        count = min(len(self._mailbox), MAILBOX_TURN)
        for _ in range(count):
            if not self._mailbox:  # a call closed the loop
                break
            call = self._mailbox.popleft()
            try:
                call()
            except BaseException as exc:  # noqa: BLE001  the policy decides, see _fault
                self._fault(exc)
        return count > 0

    def _fault(self, exc: BaseException) -> None:
        if self._on_fault is None or not self._on_fault(exc):
            raise exc
