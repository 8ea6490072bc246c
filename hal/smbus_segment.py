"""What every `hal.smbus_ports.SmbusSegment` over an engine and a queue has in common: its face."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from hal.ports import Done
from hal.smbus_engine import SmbusEngine, SmbusWire
from hal.smbus_ports import MuxPath, SmbusCapabilities, SmbusEvent, SmbusTransfer
from hal.smbus_queue import DeviceKey, SmbusQueue


class QueuedSegment(ABC):
    """The backend says how a job is queued and when it runs."""

    def __init__(self, wire: SmbusWire, tell: Callable[[SmbusEvent], None]) -> None:
        self._engine = SmbusEngine(wire, tell)
        self._adapter = wire
        self._calls: list[Callable[[SmbusEvent], None]] = []
        self._queue = SmbusQueue()

    @property
    def capabilities(self) -> SmbusCapabilities:
        return self._adapter.capabilities

    @property
    def counters(self) -> Counter[str]:
        """What the engine counted; where it runs on a worker, perhaps half a step old."""
        return self._engine.counters

    def submit(self, transfer: SmbusTransfer, deadline_ns: int, done: Done[bytes]) -> None:
        self._enqueue(
            (transfer.mux, transfer.address),
            str(transfer),
            partial(self._engine.run, transfer, deadline_ns),
            deadline_ns,
            done,
            gap_ns=transfer.gap_us * 1000,
        )

    def check_muxes(
        self, muxes: Sequence[tuple[MuxPath, int]], deadline_ns: int, done: Done[Sequence[int]]
    ) -> None:
        work = partial(self._engine.check_muxes, tuple(muxes))
        self._enqueue(None, "looking at the muxes", work, deadline_ns, done)

    def recover(self, deadline_ns: int, done: Done[None]) -> None:
        self._enqueue(None, "freeing the bus", self._engine.recover, deadline_ns, done)

    def on_event(self, call: Callable[[SmbusEvent], None]) -> None:
        self._calls.append(call)

    @abstractmethod
    def _enqueue(
        self,
        key: DeviceKey,
        what: str,
        work: Callable[[], Any],
        deadline_ns: int,
        done: Done[Any],
        gap_ns: int = 0,
    ) -> None:
        """One completion on the loop: the result, or DeadlinePassed when that comes first."""
