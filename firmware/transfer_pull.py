"""The card fetches blobs from a CNM. protocol/SPEC.md section 11.2.

The answer to a request comes over the control link, the chunks over the window, and either may be
first: chunks that come before the size is known are kept, up to EARLY_MAX_BYTES a transfer.
A pull whose chunks stop coming asks again, from the first chunk that is missing.
"""

from typing import ClassVar, Final

from firmware.endpoint import RequestError, RequestRefused
from firmware.transfer_queue import Transfer, TransferQueue
from firmware.transfer_route import AGAIN, TransferError, finish_deadline_ns, request_error
from hal.errors import HalError, Refused, StoreFull
from protocol.apf import CHUNKS_MAX, CancelRequest, PullReply, PullRequest
from protocol.window import KIND_BLOB

MS: Final = 1_000_000
EARLY_MAX_BYTES: Final = 1 << 20
QUIET_NS: Final = 1_000 * MS  # without a chunk: ask again
ROUNDS_MAX: Final = 16  # asked in a row without one new chunk: about half a minute
RETRY_NS: Final = 50 * MS  # doubled at each round, up to RETRY_MAX_NS
RETRY_MAX_NS: Final = 2_000 * MS


class _Pull(Transfer):
    """One blob on its way here."""

    def __init__(
        self, owner: TransferQueue, digest: bytes, transfer_id: int, deadline_ns: int | None
    ) -> None:
        super().__init__(owner, digest, transfer_id, deadline_ns)
        self._size: int | None = None
        self._chunks = self._missing = self._first_missing = 0
        self._have = bytearray()  # one bit a chunk
        self._early: list[tuple[int, bytes]] = []
        self._early_bytes = 0
        self._rounds = self._bad_digests = 0
        self._finishing = False

    def start(self) -> None:
        try:
            if self._owner.blobs.has(self.digest) is not None:
                self.end(None)
                return
            self._owner.route.listen(KIND_BLOB, self.transfer_id, self._on_chunk)
        except HalError as exc:
            self.end(TransferError(str(exc), code="store"))
            return
        except TransferError as exc:
            self.end(exc)
            return
        self._ask()

    def _clean_up(self, error: TransferError | None) -> None:
        self._owner.route.forget(KIND_BLOB, self.transfer_id)
        if error is not None and self._size is not None:
            self._drop()
            cancel = CancelRequest(transfer_id=self.transfer_id)
            self._owner.endpoint.request(cancel, lambda reply: None, attempts=1)

    def _drop(self) -> None:
        """What came; while it is hashed it is the store's, which admits only what is right."""
        if not self._finishing:
            try:
                self._owner.blobs.drop(self.digest)
            except HalError:
                self._owner.route.counters["pull_drop_failed"] += 1

    def reconnected(self) -> None:
        """The far end has stopped sending."""
        if not self._finishing and self._size is not None:
            self._ask()

    def _ask(self) -> None:
        self._turn += 1
        self._cancel_timer()
        turn = self._turn
        request = PullRequest(
            ctx=self._owner.ctx(),
            transfer_id=self.transfer_id,
            digest=self.digest,
            first_chunk=self._first_missing,
            chunk_bytes=self._owner.chunk_bytes,
        )
        self._owner.endpoint.request(
            request, lambda reply: self._on_reply(reply) if turn == self._turn else None
        )

    def _on_reply(self, reply: PullReply | RequestError) -> None:
        if isinstance(reply, RequestError):
            if isinstance(reply, RequestRefused) and reply.refusal.reason not in AGAIN:
                self.end(request_error(reply))
            else:
                self._again(str(reply))
            return
        if self._size is None:
            self._begin(reply)
        elif reply.size_bytes != self._size:
            text = f"size went from {self._size} to {reply.size_bytes} B"
            self.end(TransferError(text, code="refused"))
        if not self.ended and not self._finishing:
            self._later(QUIET_NS, self._quiet)

    def _begin(self, reply: PullReply) -> None:
        size, chunk_bytes = reply.size_bytes, self._owner.chunk_bytes
        chunks = -(-size // chunk_bytes)
        if chunks != reply.chunks or chunks > CHUNKS_MAX:
            text = f"{size} B in {reply.chunks} chunks of {chunk_bytes} B can't be"
            self.end(TransferError(text, code="refused"))
            return
        try:
            self._owner.blobs.begin(self.digest, size)
        except StoreFull as exc:
            self.end(TransferError(str(exc), code="no_space"))
            return
        except HalError as exc:
            self.end(TransferError(str(exc), code="store"))
            return
        self._size, self._chunks, self._missing = size, chunks, chunks
        self._have = bytearray(-(-chunks // 8))
        early, self._early = self._early, []
        for chunk, data in early:
            self._on_chunk(chunk, data)
        if not chunks:
            self._finish()
        elif self._early_bytes > EARLY_MAX_BYTES:
            self._ask()

    def _on_chunk(self, chunk: int, data: bytes) -> None:
        if self.ended or self._finishing:
            return
        if not data:  # never right, and would not count among what is kept
            self._owner.route.counters["pull_bad_chunk"] += 1
            return
        if self._size is None:
            self._early_bytes += len(data)
            if self._early_bytes <= EARLY_MAX_BYTES:
                self._early.append((chunk, data))
            return  # what does not fit is asked for again
        offset = chunk * self._owner.chunk_bytes
        wanted = min(self._owner.chunk_bytes, self._size - offset)
        if chunk >= self._chunks or len(data) != wanted:
            self._owner.route.counters["pull_bad_chunk"] += 1
            return
        if self._have[chunk >> 3] >> (chunk & 7) & 1:
            return
        try:
            self._owner.blobs.write_chunk(self.digest, offset, data)
        except HalError as exc:
            code = "no_space" if isinstance(exc, StoreFull) else "store"
            self.end(TransferError(str(exc), code=code))
            return
        self._took(chunk)

    def _took(self, chunk: int) -> None:
        self._have[chunk >> 3] |= 1 << (chunk & 7)
        self._missing -= 1
        self._rounds = 0
        if chunk == self._first_missing:
            self._skip()
        size, chunk_bytes = self._size or 0, self._owner.chunk_bytes
        there = min((self._chunks - self._missing) * chunk_bytes, size)
        self._tell(there, size)
        if not self._missing:
            self._finish()

    def _skip(self) -> None:
        """To the first chunk that is missing now."""
        first = self._first_missing
        while first < self._chunks and self._have[first >> 3] >> (first & 7) & 1:
            first += 8 if not first & 7 and self._have[first >> 3] == 0xFF else 1
        self._first_missing = min(first, self._chunks)

    def _quiet(self) -> None:
        """Ask again if no chunk came since the last look."""
        if self._rounds:
            self._again(f"{self._missing} of {self._chunks} chunks do not come")
        else:
            self._rounds = 1  # zero again with the next chunk
            self._later(QUIET_NS, self._quiet)

    def _again(self, why: str) -> None:
        self._rounds += 1
        if self._rounds > ROUNDS_MAX:
            self.end(TransferError(f"blob {self.digest.hex()}: {why}", code="stalled"))
        else:
            self._later(min(RETRY_NS << self._rounds, RETRY_MAX_NS), self._ask)

    def _finish(self) -> None:
        self._finishing = True
        self._cancel_timer()
        deadline_ns = finish_deadline_ns(self._owner.reactor.now_ns(), self._size or 0)
        self._owner.blobs.submit_finish(self.digest, deadline_ns, self._on_finished)

    def _on_finished(self, result: HalError | None) -> None:
        self._finishing = False
        if self.ended:
            return
        if result is None:
            self.end(None)
        elif isinstance(result, Refused):
            self._bad_digests += 1
            text = f"blob {self.digest.hex()} does not hash to its name: {result}"
            if self._bad_digests > 1:
                self.end(TransferError(text, code="bad_digest"))
                return
            self._size, self._first_missing = None, 0
            self._early, self._early_bytes = [], 0
            self._again(text)
        else:
            self.end(TransferError(str(result), code="store"))


class Puller(TransferQueue):
    """Pulls from one CNM."""

    KIND: ClassVar[type[Transfer]] = _Pull
