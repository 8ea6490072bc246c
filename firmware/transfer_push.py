"""The card sends blobs to a CNM. protocol/SPEC.md section 11.1.

Offer, the chunks that are missing, then verify until the far end has hashed what came. Whatever
gets lost on the way (a chunk, the window, the link, the far end's table) leads back to the offer,
whose answer says what is still missing: so a transfer resumes by itself and sends nothing twice.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Final

from firmware.endpoint import RequestError, RequestRefused
from firmware.transfer_queue import Transfer, TransferQueue
from firmware.transfer_route import AGAIN, Item, TransferError, request_error
from hal.errors import HalError
from protocol.apf import (
    CHUNKS_MAX,
    MAP_MAX_BYTES,
    Body,
    ChunkMapReply,
    ChunkMapRequest,
    OfferReply,
    OfferRequest,
    OfferState,
    VerifyReply,
    VerifyRequest,
    VerifyState,
    bit_at,
)
from protocol.window import KIND_BLOB

MS: Final = 1_000_000
STALL_NS: Final = 30_000 * MS  # without any sign of progress
RETRY_NS: Final = 50 * MS  # doubled up to RETRY_MAX_NS
RETRY_MAX_NS: Final = 2_000 * MS
VERIFY_NS: Final = 5 * MS  # first wait for a hash, doubled up to VERIFY_MAX_NS
VERIFY_MAX_NS: Final = 200 * MS
VERIFIES_MAX: Final = 3_000  # about ten minutes of hashing
ROUNDS_MAX: Final = 8  # offers in a row after which no less was missing


class _Push(Transfer):
    """One blob on its way there. It is a `Source` of the route while it is `sending`."""

    def __init__(
        self, owner: TransferQueue, digest: bytes, transfer_id: int, deadline_ns: int | None
    ) -> None:
        super().__init__(owner, digest, transfer_id, deadline_ns)
        self.sending = False
        self._size = self._chunks = 0
        self._have = b""  # bits from chunk `_have_from` on
        self._have_from = 0
        self._cursor = 0
        self._missing: int | None = None  # as the last offer said
        self._rounds = self._bad_digests = self._verifies = 0
        self._retry_ns = RETRY_NS
        self._verify_ns = VERIFY_NS
        self._alive_ns = 0
        self._cancel_watch: Callable[[], None] = lambda: None

    def start(self) -> None:
        try:
            size = self._owner.blobs.has(self.digest)
        except HalError as exc:
            self.end(TransferError(str(exc), code="store"))
            return
        if size is None:
            self.end(TransferError(f"blob {self.digest.hex()} is not here", code="no_blob"))
            return
        chunk_bytes = self._owner.chunk_bytes
        self._size, self._chunks = size, -(-size // chunk_bytes)
        if self._chunks > CHUNKS_MAX:
            text = f"blob of {size} B has more than {CHUNKS_MAX} chunks of {chunk_bytes} B"
            self.end(TransferError(text, code="refused"))
            return
        self._alive()
        self._watchdog()
        self._offer()

    def _clean_up(self, error: TransferError | None) -> None:
        self._cancel_watch()
        self._owner.route.discard(self)

    def reconnected(self) -> None:
        if self.sending:
            self._restart()

    # --- offer and map ---

    def _restart(self) -> None:
        self._turn += 1
        self.sending = False
        self._cancel_timer()
        self._owner.route.discard(self)
        self._offer()

    def _again(self) -> None:
        """Offer again after a while; the watchdog bounds how often."""
        self._turn += 1
        self.sending = False
        self._owner.route.discard(self)
        self._later(self._retry_ns, self._offer)
        self._retry_ns = min(2 * self._retry_ns, RETRY_MAX_NS)

    def _offer(self) -> None:
        offer = OfferRequest(
            ctx=self._owner.ctx(),
            transfer_id=self.transfer_id,
            digest=self.digest,
            size_bytes=self._size,
            chunk_bytes=self._owner.chunk_bytes,
        )
        self._request(offer, self._on_offer)

    def _on_offer(self, reply: OfferReply) -> None:
        if reply.state == OfferState.HAVE:
            self.end(None)
            return
        missing, first = reply.missing_chunks, reply.first_missing
        if missing > self._chunks or first > self._chunks or first + missing > self._chunks:
            text = f"far end misses {missing} chunks from {first} of {self._chunks}"
            self.end(TransferError(text, code="refused"))
            return
        if self._missing is not None and missing >= self._missing:
            self._rounds += 1
            if self._rounds >= ROUNDS_MAX:
                text = f"{missing} chunks do not arrive through the window"
                self.end(TransferError(text, code="stalled"))
                return
        else:
            self._rounds = 0
        self._missing = missing
        self._have, self._have_from, self._cursor = b"", first, first
        if first + missing == self._chunks:  # all from `first` on: no need for the map
            self._send()
        else:
            self._have_from = first // 8 * 8
            self._map()

    def _map(self) -> None:
        first = self._have_from + 8 * len(self._have)
        if first >= self._chunks:
            self._send()
        else:
            ask = ChunkMapRequest(transfer_id=self.transfer_id, first_chunk=first)
            self._request(ask, lambda reply: self._on_map(first, reply))

    def _on_map(self, first: int, reply: ChunkMapReply) -> None:
        if reply.first_chunk != first or not reply.bits:
            self._again()
            return
        self._have += reply.bits[:MAP_MAX_BYTES]
        self._map()

    # --- chunks (a Source of the route) ---

    def _send(self) -> None:
        self.sending = True
        self._owner.route.add(self)

    def next_chunk(self) -> Item | None:
        chunk = self._cursor
        while chunk < self._chunks and bit_at(self._have, chunk - self._have_from):
            chunk += 1
        self._cursor = chunk
        if self.ended or chunk >= self._chunks:
            return None
        size = self._owner.chunk_bytes
        try:
            data = self._owner.blobs.read(self.digest, chunk * size, size)
        except HalError as exc:
            self.end(TransferError(f"blob {self.digest.hex()}: {exc}", code="store"))
            return None
        self._cursor = chunk + 1
        return KIND_BLOB, self.transfer_id, chunk, data

    def chunk_sent(self) -> None:
        if self.ended:
            return
        self._alive()
        there = min(self._cursor * self._owner.chunk_bytes, self._size)
        self._tell(there, self._size)

    def all_sent(self) -> None:
        if self.ended:
            return
        turn = self._turn
        self._verify_ns = VERIFY_NS
        self._owner.route.when_taken(lambda: self._verify() if turn == self._turn else None)

    def _verify(self) -> None:
        self._alive()
        self._request(VerifyRequest(transfer_id=self.transfer_id), self._on_verify)

    def _on_verify(self, reply: VerifyReply) -> None:
        self.sending = False
        if reply.state == VerifyState.GOOD:
            self.end(None)
        elif reply.state == VerifyState.HASHING:
            self._verifies += 1
            if self._verifies > VERIFIES_MAX:
                self.end(TransferError("the far end never ends hashing", code="stalled"))
                return
            self._later(self._verify_ns, self._verify)
            self._verify_ns = min(2 * self._verify_ns, VERIFY_MAX_NS)
        elif reply.state == VerifyState.BAD_DIGEST:
            self._bad_digests += 1
            self._missing = None
            if self._bad_digests > 1:
                text = f"blob {self.digest.hex()} does not hash to its name at the far end"
                self.end(TransferError(text, code="bad_digest"))
            else:
                self._offer()
        else:  # INCOMPLETE: some got lost
            self._owner.route.counters["push_rounds"] += 1
            self._offer()

    # --- time ---

    def _request(self, body: Body, then: Callable[[Any], None]) -> None:
        turn = self._turn

        def answered(reply: object) -> None:
            if turn != self._turn:
                return
            if isinstance(reply, RequestRefused) and reply.refusal.reason not in AGAIN:
                self.end(request_error(reply))
            elif isinstance(reply, RequestError):
                self._again()
            else:
                self._alive()
                self._retry_ns = RETRY_NS
                then(reply)

        self._owner.endpoint.request(body, answered)

    def _alive(self) -> None:
        self._alive_ns = self._owner.reactor.now_ns()

    def _watchdog(self) -> None:
        due_ns = self._alive_ns + STALL_NS
        if self._owner.reactor.now_ns() >= due_ns:
            text = f"no progress in {STALL_NS // MS} ms"
            self.end(TransferError(text, code="stalled"))
        else:
            self._cancel_watch = self._owner.reactor.call_at(due_ns, self._watchdog)


class Pusher(TransferQueue):
    """Pushes to one CNM."""

    KIND: ClassVar[type[Transfer]] = _Push
