"""`hal.smbus_ports.SmbusSegment` on one adapter of the kernel: a worker thread for the segment.

A transfer that hangs in the kernel (an adapter's own time-out is about a second) holds the
worker, not the loop: at its deadline its caller gets DeadlinePassed, and its late result is
counted and dropped.

The kernel may know a mux itself (i2c-mux-pca954x) and offer each channel as an adapter of its
own. Then use those adapters, and name no mux in the transfer: the address of the mux belongs to
that driver, and is Unavailable here.
"""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from hal.errors import DeadlinePassed, HalError, Unavailable
from hal.linux.smbus_wire import LinuxSmbusWire
from hal.ports import Done, Reactor
from hal.smbus_engine import MS
from hal.smbus_ports import (
    QUEUE_LIMIT,
    SmbusEvent,
)
from hal.smbus_queue import DeviceKey, Job
from hal.smbus_segment import QueuedSegment

CLOSE_WAIT_S: Final = 3.0  # for a transfer that is in the kernel


class LinuxSmbusSegment(QueuedSegment):
    """All methods are called on the loop's thread."""

    def __init__(self, number: int, reactor: Reactor) -> None:
        """`number` as in /dev/i2c-N. Raises Unavailable."""
        self._reactor = reactor
        self._wire = LinuxSmbusWire(number)
        super().__init__(self._wire, self._tell)
        self._ready = threading.Condition()
        self._closing = False
        self.late_results = 0  # came after their deadline, and were dropped
        self._worker = threading.Thread(target=self._work, name=f"apf-i2c-{number}", daemon=True)
        self._worker.start()

    def close(self) -> None:
        with self._ready:
            if self._closing:
                return
            self._closing = True
            waiting = self._queue.drain()
            self._ready.notify()
        self._wire.stop()
        for job in waiting:
            job.give(Unavailable(f"{self._wire.path}: {job.what}: closed"))
        self._worker.join(CLOSE_WAIT_S)
        if not self._worker.is_alive():
            self._wire.close()  # else the descriptor stays with the call that hangs in the kernel

    def _enqueue(
        self,
        key: DeviceKey,
        what: str,
        work: Callable[[], Any],
        deadline_ns: int,
        done: Done[Any],
        gap_ns: int = 0,
    ) -> None:
        """One completion, on the loop: the result, or DeadlinePassed when that comes first."""

        def expire() -> None:
            job.give(DeadlinePassed(f"{self._wire.path}: {what}: not finished in time"))

        def give(result: Any) -> None:  # on the loop's thread
            if job.given:
                self.late_results += 1
                return
            job.given = True
            cancel()
            done(result)

        job = Job(key=key, what=what, work=work, give=give, deadline_ns=deadline_ns, gap_ns=gap_ns)
        cancel = self._reactor.call_at(deadline_ns, expire)
        with self._ready:
            taken = not self._closing and self._queue.push(job)
            self._ready.notify()
        if not taken:
            state = "closed" if self._closing else f"full, {QUEUE_LIMIT} transfers wait"
            refusal = Unavailable(f"{self._wire.path}: {what}: the segment is {state}")
            self._reactor.post(partial(give, refusal))

    # --- the worker ---

    def _work(self) -> None:
        try:
            while (job := self._next()) is not None:
                if not job.given:  # else nobody waits for it any more
                    self._do(job)
        finally:  # also when a bug of ours ends it: what waits meets its deadline, and no more is
            with self._ready:  # taken
                self._closing = True

    def _do(self, job: Job) -> None:
        result: Any
        try:
            if self._wire.now_ns() >= job.deadline_ns:
                raise DeadlinePassed(f"{self._wire.path}: {job.what}: waited past its deadline")
            result = job.work()
        except HalError as exc:
            result = exc
        with self._ready:
            self._queue.ended(job, self._wire.now_ns())
        self._reactor.post(partial(job.give, result))

    def _next(self) -> Job | None:
        """The next job; None when it is closing."""
        with self._ready:
            while not self._closing:
                now_ns = self._wire.now_ns()
                found = self._queue.pop(now_ns)
                if isinstance(found, Job):
                    return found
                self._ready.wait(None if found is None else max(found - now_ns, MS) / 1e9)
        return None

    def _tell(self, event: SmbusEvent) -> None:
        """On the worker; told on the loop."""
        for call in self._calls:
            self._reactor.post(partial(call, event))
