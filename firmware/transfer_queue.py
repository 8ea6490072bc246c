"""What pushes and pulls share: one transfer a blob, ACTIVE_MAX at a time, QUEUE_MAX waiting.

A transfer is told three things: `start`, `reconnected` (a new window: what was in the ring may be
lost) and `end`, which happens once and tells everybody who waits for the blob.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Final

from firmware.transfer_route import ChunkRoute, Done, Progress, Requester, TransferError
from hal.ports import BlobStore, Reactor
from protocol.apf import Ctx

ACTIVE_MAX: Final = 4
QUEUE_MAX: Final = 256


class Transfer(ABC):
    """One blob on its way. `ended` is set once; answers to an older `_turn` are ignored."""

    def __init__(
        self, owner: "TransferQueue", digest: bytes, transfer_id: int, deadline_ns: int | None
    ) -> None:
        self.digest = digest
        self.transfer_id = transfer_id
        self.waiters: list[tuple[Done, Progress | None]] = []
        self.ended = False
        self._owner = owner
        self._turn = 0
        self._cancel_timer: Callable[[], None] = lambda: None
        self._cancel_deadline: Callable[[], None] = lambda: None
        if deadline_ns is not None:
            self._cancel_deadline = owner.reactor.call_at(deadline_ns, self._too_late)

    @abstractmethod
    def start(self) -> None:
        """Its turn has come."""

    @abstractmethod
    def reconnected(self) -> None:
        """There is a new window."""

    def end(self, error: TransferError | None) -> None:
        """It is over, well (None) or not; only the first end counts."""
        if self.ended:
            return
        self.ended = True
        self._turn += 1
        self._cancel_timer()
        self._cancel_deadline()
        self._clean_up(error)
        self._owner.ended(self, error)

    @abstractmethod
    def _clean_up(self, error: TransferError | None) -> None:
        """Let go of what it holds."""

    def _later(self, delay_ns: int, call: Callable[[], None]) -> None:
        """Instead of what was to be done later before."""
        self._cancel_timer()
        reactor = self._owner.reactor
        self._cancel_timer = reactor.call_at(reactor.now_ns() + delay_ns, call)

    def _tell(self, there_bytes: int, size_bytes: int) -> None:
        for _, progress in self.waiters:
            if progress is not None:
                progress(there_bytes, size_bytes)

    def _too_late(self) -> None:
        self.end(TransferError("its deadline has passed", code="deadline"))


class TransferQueue:
    """The transfers of one direction with one CNM. Loop thread only."""

    KIND: ClassVar[type[Transfer]]

    def __init__(
        self,
        endpoint: Requester,
        route: ChunkRoute,
        blobs: BlobStore,
        reactor: Reactor,
        ctx: Callable[[], Ctx],
        *,
        chunk_bytes: int,
        take_id: Callable[[], int],
    ) -> None:
        self.endpoint, self.route, self.blobs = endpoint, route, blobs
        self.reactor, self.ctx = reactor, ctx
        self.chunk_bytes = chunk_bytes
        self._take_id = take_id
        self._active: dict[bytes, Transfer] = {}
        self._waiting: dict[bytes, Transfer] = {}  # in order
        route.on_connect(self._reconnected)

    def add(
        self, digest: bytes, done: Done, progress: Progress | None, deadline_ns: int | None
    ) -> None:
        """`done` later, once. The same digest twice shares one transfer and its first deadline."""
        transfer = self._active.get(digest) or self._waiting.get(digest)
        if transfer is None:
            if len(self._waiting) >= QUEUE_MAX:
                error = TransferError(f"{QUEUE_MAX} transfers are waiting", code="queue_full")
                self.reactor.post(lambda: done(error))
                return
            transfer = self.KIND(self, digest, self._take_id(), deadline_ns)
            self._waiting[digest] = transfer
            self.reactor.post(self._start_waiting)
        transfer.waiters.append((done, progress))

    def close(self, text: str) -> None:
        """End all of them with `TransferError`."""
        for transfer in [*self._waiting.values(), *self._active.values()]:
            transfer.end(TransferError(text, code="closed"))

    def ended(self, transfer: Transfer, error: TransferError | None) -> None:
        """For a transfer: it is over."""
        self._active.pop(transfer.digest, None)
        self._waiting.pop(transfer.digest, None)
        for done, _ in transfer.waiters:
            done(error)
        self.reactor.post(self._start_waiting)

    def _start_waiting(self) -> None:
        while self._waiting and len(self._active) < ACTIVE_MAX:
            digest = next(iter(self._waiting))
            transfer = self._active[digest] = self._waiting.pop(digest)
            transfer.start()

    def _reconnected(self) -> None:
        for transfer in list(self._active.values()):
            transfer.reconnected()
