"""The card reads log bytes of a CNM by offset. protocol/SPEC.md section 12.

The answer comes over the control link, the bytes over the window; either may be first. Nothing is
asked twice here: a reader that got an error, or less than it wanted, reads on from its offset.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from firmware.endpoint import RequestError
from firmware.transfer_route import ChunkRoute, Requester, TransferError, request_error
from hal.ports import Reactor
from protocol.apf import LOG_READ_MAX_BYTES, LogReadReply, LogReadRequest
from protocol.window import KIND_LOG

LOGS_MAX: Final = 16
LOG_WAIT_NS: Final = 2_000_000_000  # for the bytes, after the answer


@dataclass(frozen=True, slots=True, kw_only=True)
class LogBytes:
    """`data` begins at `start`; `start` above the wanted offset shows a gap."""

    start: int
    end: int  # bytes ever logged
    data: bytes


OnLog = Callable[[LogBytes | TransferError], None]


class LogReader:
    """Reads log bytes of one CNM; at most LOGS_MAX at a time. Loop thread only."""

    def __init__(
        self,
        endpoint: Requester,
        route: ChunkRoute,
        reactor: Reactor,
        *,
        take_id: Callable[[], int],
    ) -> None:
        self._endpoint, self._route, self._reactor = endpoint, route, reactor
        self._take_id = take_id
        self._open: dict[int, _LogRead] = {}  # by transfer id

    def read(self, instance: str, offset: int, max_bytes: int, done: OnLog) -> None:
        """`done` later, once. At most LOG_READ_MAX_BYTES; less than wanted may come."""
        transfer_id = self._take_id()
        read = _LogRead(self, transfer_id, done)
        if len(self._open) >= LOGS_MAX:
            error = TransferError(f"{LOGS_MAX} log reads are open", code="queue_full")
            self._reactor.post(lambda: done(error))
            return
        self._route.listen(KIND_LOG, transfer_id, read.on_chunk)
        self._open[transfer_id] = read
        request = LogReadRequest(
            instance=instance,
            transfer_id=transfer_id,
            offset=offset,
            max_bytes=min(max_bytes, LOG_READ_MAX_BYTES),
        )
        self._endpoint.request(request, read.on_reply)

    def close(self, text: str) -> None:
        """End all of them with `TransferError`."""
        for read in list(self._open.values()):
            read.end(TransferError(text, code="closed"))

    def forget(self, transfer_id: int) -> None:
        """For a read: it is over."""
        del self._open[transfer_id]
        self._route.forget(KIND_LOG, transfer_id)

    def wait(self, call: Callable[[], None]) -> Callable[[], None]:
        """For a read: the bytes are late after this."""
        return self._reactor.call_at(self._reactor.now_ns() + LOG_WAIT_NS, call)


class _LogRead:
    def __init__(self, owner: LogReader, transfer_id: int, done: OnLog) -> None:
        self._owner, self._transfer_id, self._done = owner, transfer_id, done
        self._parts: dict[int, bytes] = {}  # by chunk; LOG_READ_MAX_BYTES in all
        self._bytes = 0
        self._reply: LogReadReply | None = None
        self._ended = False
        self._cancel: Callable[[], None] = lambda: None

    def end(self, result: LogBytes | TransferError) -> None:
        if not self._ended:
            self._ended = True
            self._cancel()
            self._owner.forget(self._transfer_id)
            self._done(result)

    def on_reply(self, reply: LogReadReply | RequestError) -> None:
        if self._ended:
            return
        if isinstance(reply, RequestError):
            self.end(request_error(reply))
            return
        self._reply = reply
        self._cancel = self._owner.wait(self._late)
        self._check()

    def on_chunk(self, chunk: int, data: bytes) -> None:
        if data and chunk not in self._parts and self._bytes + len(data) <= LOG_READ_MAX_BYTES:
            self._parts[chunk] = data
            self._bytes += len(data)
            self._check()

    def _check(self) -> None:
        reply = self._reply
        if reply is None or self._bytes < reply.length:
            return
        data = b"".join(self._parts[chunk] for chunk in sorted(self._parts))
        self.end(LogBytes(start=reply.start, end=reply.end, data=data[: reply.length]))

    def _late(self) -> None:
        self.end(TransferError("log bytes got lost on the way; read again", code="lost"))
