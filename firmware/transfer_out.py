"""A CNM gives: blobs that the card pulls, and bytes such as a log's. protocol/SPEC.md 11.2, 12."""

from collections import deque
from collections.abc import Callable
from typing import Final

from firmware.transfer_route import ChunkRoute, Item, Server
from hal.errors import HalError
from hal.ports import BlobStore
from protocol.apf import CHUNKS_MAX, Ctx, PullReply, PullRequest, Refusal, RefusalReason
from protocol.window import KIND_BLOB

SERVES_MAX: Final = 8
BYTES_MAX: Final = 4 << 20  # of send_bytes, waiting for the ring
RETRY_AFTER_MS: Final = 50


class _Serve:
    """A blob on its way out (a Source of the route)."""

    def __init__(self, owner: "TransferServer", request: PullRequest, chunks: int) -> None:
        self._owner, self._request, self._chunks = owner, request, chunks
        self._next = request.first_chunk

    def next_chunk(self) -> Item | None:
        if self._next >= self._chunks:
            return None
        chunk, size = self._next, self._request.chunk_bytes
        try:
            data = self._owner.blobs.read(self._request.digest, chunk * size, size)
        except HalError:  # dropped meanwhile: the card's next PULL is refused with the reason
            self._owner.route.counters["serve_failed"] += 1
            return None
        self._next = chunk + 1
        return KIND_BLOB, self._request.transfer_id, chunk, data

    def chunk_sent(self) -> None:
        pass

    def all_sent(self) -> None:
        self._owner.served(self._request.transfer_id)


class _Bytes:
    """Bytes on their way out (a Source of the route)."""

    def __init__(
        self, owner: "TransferServer", transfer_id: int, kind: int, data: bytes, step: int
    ) -> None:
        self._owner, self._transfer_id, self._kind = owner, transfer_id, kind
        self._data, self._step = data, step
        self._next = 0
        self.left = len(data)

    def next_chunk(self) -> Item | None:
        offset = self._next * self._step
        if offset >= len(self._data):
            return None
        chunk, self._next = self._next, self._next + 1
        return self._kind, self._transfer_id, chunk, self._data[offset : offset + self._step]

    def chunk_sent(self) -> None:
        self.left = max(0, len(self._data) - self._next * self._step)

    def all_sent(self) -> None:
        self._owner.bytes_sent(self)


class TransferServer:
    """Serves Pull, and sends bytes. Loop thread only."""

    def __init__(
        self,
        endpoint: Server,
        route: ChunkRoute,
        blobs: BlobStore,
        check: Callable[[Ctx], Refusal | None],
    ) -> None:
        self.blobs, self.route = blobs, route
        self._check = check
        self._serves: dict[int, _Serve] = {}  # at most SERVES_MAX
        self._bytes: deque[_Bytes] = deque()  # BYTES_MAX in all
        endpoint.serve(PullRequest, self._pull)
        route.on_connect(self._reconnected)

    def _pull(self, request: PullRequest) -> PullReply | Refusal:
        refusal = self._check(request.ctx)
        if refusal is not None:
            return refusal
        channel = self.route.channel
        if request.chunk_bytes > channel.slot_bytes:
            text = f"chunks of {request.chunk_bytes} B, slots have {channel.slot_bytes} B"
            return Refusal(reason=RefusalReason.TOO_LARGE, text=text)
        if not channel.connected:
            return _later(RefusalReason.NO_WINDOW, "the window is not connected")
        try:
            size = self.blobs.has(request.digest)
        except HalError as exc:
            return Refusal(reason=RefusalReason.INTERNAL, text=str(exc))
        if size is None:
            return Refusal(reason=RefusalReason.MISSING_BLOB, text=request.digest.hex())
        chunks = -(-size // request.chunk_bytes)
        if chunks > CHUNKS_MAX:
            text = f"{chunks} chunks, at most {CHUNKS_MAX}"
            return Refusal(reason=RefusalReason.TOO_LARGE, text=text)
        self.cancel(request.transfer_id)
        if len(self._serves) >= SERVES_MAX:
            return _later(RefusalReason.LIMIT, f"{SERVES_MAX} objects are on their way out")
        serve = self._serves[request.transfer_id] = _Serve(self, request, chunks)
        self.route.add(serve)
        return PullReply(size_bytes=size, chunks=chunks)

    def cancel(self, transfer_id: int) -> None:
        """Stop sending a blob; unknown ids are ignored."""
        serve = self._serves.pop(transfer_id, None)
        if serve is not None:
            self.route.discard(serve)

    def served(self, transfer_id: int) -> None:
        """For a serve: all its chunks are in the ring."""
        self._serves.pop(transfer_id, None)

    def send_bytes(self, transfer_id: int, kind: int, data: bytes) -> bool:
        """Send bytes as chunks 0, 1, ... of a transfer. False, with nothing taken, when there is no
        connection or BYTES_MAX wait already."""
        waiting = sum(item.left for item in self._bytes)
        if not self.route.channel.connected or waiting + len(data) > BYTES_MAX:
            return False
        if data:
            source = _Bytes(self, transfer_id, kind, data, self.route.channel.slot_bytes)
            self._bytes.append(source)
            self.route.add(source)
        return True

    def bytes_sent(self, source: _Bytes) -> None:
        """For bytes: all of them are in the ring."""
        self._bytes.remove(source)

    def _reconnected(self) -> None:
        """What was going out belonged to the connection before: the card asks again."""
        for transfer_id in list(self._serves):
            self.cancel(transfer_id)
        for source in self._bytes:
            self.route.discard(source)
        self._bytes.clear()


def _later(reason: RefusalReason, text: str) -> Refusal:
    return Refusal(reason=reason, retry_after_ms=RETRY_AFTER_MS, text=text)
