"""`hal.smbus_ports` over a bus of the virtual world. The policy is `hal.smbus_engine`'s, the same
as on Linux; a transfer with its muxes is done at once and completes after the time that it takes
on the wire."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from hal.errors import DeadlinePassed, HalError, Unavailable
from hal.mock.smbus_bus import T_TIMEOUT_NS, MockSmbusBus
from hal.mock.smbus_model import MAX_WRITE_BYTES, Model
from hal.ports import Done, Event
from hal.smbus_ports import (
    QUEUE_LIMIT,
    BusHeld,
    SmbusCapabilities,
    SmbusEvent,
    SmbusFunctions,
    SmbusTransfer,
)
from hal.smbus_queue import DeviceKey, Job
from hal.smbus_segment import QueuedSegment

if TYPE_CHECKING:
    from hal.mock.node import Node

FRAMES_LIMIT: Final = 64  # writes to a target that nobody has taken yet; later ones are refused


class MockSmbusWire:
    """`hal.smbus_engine.SmbusWire`; `spent_ns` is what the present job has taken so far."""

    def __init__(self, node: Node, bus: MockSmbusBus) -> None:
        self._node = node
        self.bus = bus
        self.spent_ns = 0

    @property
    def capabilities(self) -> SmbusCapabilities:
        return SmbusCapabilities(
            adapter=f"mock:{self.bus.name}", functions=self.bus.functions, driver="mock"
        )

    def now_ns(self) -> int:
        return self._node.clock.now_ns() + self.spent_ns

    def pause(self, duration_ns: int) -> None:
        self.spent_ns += duration_ns

    def transfer(self, transfer: SmbusTransfer) -> bytes:
        try:
            data, wire_bytes = self.bus.transfer(transfer)
        except BusHeld:
            self.spent_ns += T_TIMEOUT_NS
            raise
        except HalError:
            self.spent_ns += 12 * self.bus.bit_ns
            raise
        # nine clocks a byte; a start and a stop; and what the device stretches
        self.spent_ns += (9 * wire_bytes + 2) * self.bus.bit_ns
        self.spent_ns += self.bus.stretch_ns.get(transfer.address, 0)
        return data

    def free(self) -> None:
        self.spent_ns += self.bus.free()


class MockSmbusSegment(QueuedSegment):
    """One node's use of a bus. Dies with the node; a transfer that is on the wire then ends."""

    def __init__(self, node: Node, bus: MockSmbusBus) -> None:
        self._node = node
        self._incarnation = node.incarnation
        self._kernel = node.kernel
        self._post = node.poster()
        self._wire = MockSmbusWire(node, bus)
        self._events: list[SmbusEvent] = []  # of the present job
        super().__init__(self._wire, self._events.append)
        self._busy = False
        self._closed = False
        self._wake_ns: int | None = None

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for job in self._queue.drain():
            job.give(Unavailable(f"{self._name}: {job.what}: closed"))

    @property
    def _dead(self) -> bool:
        """Whoever opened it has died, perhaps to live again."""
        return self._node.incarnation != self._incarnation

    @property
    def _name(self) -> str:
        return f"mock:{self._wire.bus.name}"

    def _enqueue(
        self,
        key: DeviceKey,
        what: str,
        work: Callable[[], Any],
        deadline_ns: int,
        done: Done[Any],
        gap_ns: int = 0,
    ) -> None:
        def give(result: Any) -> None:
            if not job.given:
                job.given = True
                cancel()
                self._post(lambda: done(result))

        def expire() -> None:
            give(DeadlinePassed(f"{self._name}: {what}: not finished in time"))

        job = Job(key=key, what=what, work=work, give=give, deadline_ns=deadline_ns, gap_ns=gap_ns)
        limit_ns = self._node.clock.kernel_ns(deadline_ns)
        cancel: Callable[[], None] = lambda: None  # noqa: E731
        if limit_ns is not None:  # else its clock stands still
            cancel = self._kernel.at(limit_ns, expire)
        if self._closed or not self._queue.push(job):
            state = "closed" if self._closed else f"full, {QUEUE_LIMIT} transfers wait"
            give(Unavailable(f"{self._name}: {what}: the segment is {state}"))
            return
        self._kernel.at(self._kernel.now_ns, self._next)

    def _next(self) -> None:
        """Begin the next job when the wire is free."""
        if self._busy or self._closed or self._dead:
            return
        now_ns = self._node.clock.now_ns()
        found = self._queue.pop(now_ns)
        if found is None:
            return
        if not isinstance(found, Job):
            at_ns = self._node.clock.kernel_ns(found)
            if at_ns is not None and at_ns != self._wake_ns:
                self._wake_ns = at_ns
                self._kernel.at(at_ns, self._next)
            return
        self._busy = True
        bus = self._wire.bus
        begin_ns = max(self._kernel.now_ns, bus.free_ns)
        if begin_ns > self._kernel.now_ns:
            self._kernel.at(begin_ns, lambda: self._do(found))
        else:
            self._do(found)

    def _do(self, job: Job) -> None:
        if self._dead:
            return
        if job.given:
            self._busy = False
            self._next()
            return
        self._wire.spent_ns = 0
        result: Any
        try:
            if self._wire.now_ns() >= job.deadline_ns:
                raise DeadlinePassed(f"{self._name}: {job.what}: waited past its deadline")
            result = job.work()
        except HalError as exc:
            result = exc
        events, self._events[:] = list(self._events), []
        end_ns = self._kernel.now_ns + self._wire.spent_ns
        self._wire.spent_ns = 0
        self._wire.bus.free_ns = end_ns
        outcome = type(result).__name__ if isinstance(result, HalError) else "ok"
        self._kernel.note(self._name, job.what, outcome)
        self._kernel.at(end_ns, lambda: self._ended(job, result, events))

    def _ended(self, job: Job, result: Any, events: Sequence[SmbusEvent]) -> None:
        self._busy = False
        self._queue.ended(job, self._node.clock.now_ns())
        for event in events:
            for call in self._calls:
                self._post(partial(call, event))
        job.give(result)
        self._next()


class MockSmbusTarget(Model):
    """`hal.smbus_ports.SmbusTarget`: a node that is itself addressed. Raises Unavailable where
    the adapter can't."""

    def __init__(self, node: Node, bus: MockSmbusBus, address: int) -> None:
        if SmbusFunctions.TARGET not in bus.functions:
            raise Unavailable(f"mock:{bus.name}: the adapter has no target mode")
        super().__init__(address)
        self._kernel = node.kernel
        self._bus = bus
        self._frames: deque[bytes] = deque()
        self._coming: bytearray | None = None
        self._device = node.kernel.open_handle(node, self, self.close)
        self.refused = 0
        bus.attach(self)

    @property
    def handle(self) -> int:
        return self._device.number

    def receive(self) -> Sequence[bytes]:
        frames = list(self._frames)
        self._frames.clear()
        self._device.set(0)
        return frames

    def close(self) -> None:
        self._bus.detach(self)
        self._kernel.close_handle(self._device)

    # --- the wire ---

    def begin(self, read: bool) -> bool:
        full = len(self._frames) >= FRAMES_LIMIT
        self._coming = None if read or full else bytearray()
        self.refused += full
        return self._coming is not None

    def put(self, byte: int) -> bool:
        if self._coming is None or len(self._coming) >= MAX_WRITE_BYTES:
            return False
        self._coming.append(byte)
        return True

    def end(self) -> None:
        if self._coming:
            self._frames.append(bytes(self._coming))
            self._device.set(int(Event.READ))
        self._coming = None
