"""A CNM takes blobs in. protocol/SPEC.md section 11.1.

What is half here is kept in a bounded table by digest, so that a new offer (another transfer id,
after a restart of the card's daemon) goes on where the last one stopped. The object is hashed by
the store before it counts as there; bytes that do not hash to the name are dropped.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from firmware.transfer_out import TransferServer
from firmware.transfer_route import ChunkRoute, Server, TransferError, finish_deadline_ns
from hal.errors import HalError, Refused, StoreFull
from hal.ports import BlobStore, Reactor
from protocol.apf import (
    CHUNKS_MAX,
    MAP_MAX_BYTES,
    CancelReply,
    CancelRequest,
    ChunkMapReply,
    ChunkMapRequest,
    Ctx,
    HaveReply,
    HaveRequest,
    OfferReply,
    OfferRequest,
    OfferState,
    Refusal,
    RefusalReason,
    VerifyReply,
    VerifyRequest,
    VerifyState,
    pack_bits,
)
from protocol.window import KIND_BLOB

MS: Final = 1_000_000
PARTIALS_MAX: Final = 32
IDLE_NS: Final = 600_000 * MS  # a partial object without a sign of life is dropped
EVICT_NS: Final = 60_000 * MS  # sooner when the table is full; above the sender's STALL_NS
SWEEP_NS: Final = 30_000 * MS
GOOD_KEPT: Final = 256  # transfer ids that Verify still knows after their object was admitted
RETRY_AFTER_MS: Final = 50


@dataclass(slots=True, kw_only=True)
class _Partial:
    """An object on its way in; at most PARTIALS_MAX."""

    digest: bytes
    size_bytes: int
    chunk_bytes: int
    chunks: int
    missing: int
    have: bytearray  # one bit a chunk, LSB first
    alive_ns: int
    transfer_id: int
    first_missing: int = 0
    finishing: bool = False
    bad_digest: bool = False  # what came was dropped
    error: HalError | None = None  # the store's, until the next offer

    def forget_chunks(self) -> None:
        self.missing, self.first_missing = self.chunks, 0
        self.have = bytearray(len(self.have))

    def take(self, chunk: int) -> None:
        """Mark a chunk that was missing."""
        have = self.have
        have[chunk >> 3] |= 1 << (chunk & 7)
        self.missing -= 1
        first = self.first_missing
        while first < self.chunks and have[first >> 3] >> (first & 7) & 1:
            first += 8 if not first & 7 and have[first >> 3] == 0xFF else 1
        self.first_missing = min(first, self.chunks)


class TransferReceiver:
    """Serves Offer, ChunkMap, Verify, Cancel, Have and (by `TransferServer`) Pull on a CNM.
    Loop thread only."""

    def __init__(
        self,
        endpoint: Server,
        route: ChunkRoute,
        blobs: BlobStore,
        reactor: Reactor,
        check: Callable[[Ctx], Refusal | None],
    ) -> None:
        """`check(ctx)`: None, or why a command of this card, epoch and boot is refused."""
        self._route, self._blobs = route, blobs
        self._reactor, self._check = reactor, check
        self._out = TransferServer(endpoint, route, blobs, check)
        self.send_bytes = self._out.send_bytes
        self._partials: dict[bytes, _Partial] = {}  # at most PARTIALS_MAX
        self._by_id: dict[int, _Partial] = {}  # one id for each of them
        self._good: OrderedDict[int, bytes] = OrderedDict()  # the last GOOD_KEPT: id, digest
        endpoint.serve(OfferRequest, self._offer)
        endpoint.serve(ChunkMapRequest, self._chunk_map)
        endpoint.serve(VerifyRequest, self._verify)
        endpoint.serve(CancelRequest, self._cancel)
        endpoint.serve(HaveRequest, self._have)
        self._cancel_sweep = reactor.call_at(reactor.now_ns() + SWEEP_NS, self._sweep)

    def close(self) -> None:
        """Stop the timer; partial objects stay in the store."""
        self._cancel_sweep()

    # --- requests ---

    def _offer(self, request: OfferRequest) -> OfferReply | Refusal:
        refusal = self._check(request.ctx)
        if refusal is not None:
            return refusal
        try:
            partial = self._partials.get(request.digest)
            finishing = partial is not None and partial.finishing
            if not finishing and self._blobs.has(request.digest) is not None:
                return OfferReply(state=OfferState.HAVE)
            partial = self._partial_for(request)
        except (HalError, TransferError) as exc:
            return _refusal(exc)
        partial.alive_ns = self._reactor.now_ns()
        partial.bad_digest, partial.error = False, None
        if not partial.missing:
            self._finish(partial)
        return OfferReply(
            state=OfferState.NEED if partial.missing == partial.chunks else OfferState.PARTIAL,
            missing_chunks=partial.missing,
            first_missing=partial.first_missing,
        )

    def _chunk_map(self, request: ChunkMapRequest) -> ChunkMapReply | Refusal:
        partial = self._by_id.get(request.transfer_id)
        if partial is None:
            return _unknown(request.transfer_id)
        if request.first_chunk % 8 or request.first_chunk >= max(partial.chunks, 1):
            text = f"map from chunk {request.first_chunk} of {partial.chunks}"
            return Refusal(reason=RefusalReason.MALFORMED, text=text)
        first = request.first_chunk // 8
        bits = bytes(partial.have[first : first + MAP_MAX_BYTES])
        return ChunkMapReply(first_chunk=request.first_chunk, bits=bits)

    def _verify(self, request: VerifyRequest) -> VerifyReply | Refusal:
        digest = self._good.get(request.transfer_id)
        partial = self._by_id.get(request.transfer_id)
        try:
            if digest is not None and self._blobs.has(digest) is not None:
                return VerifyReply(state=VerifyState.GOOD)
        except HalError as exc:
            return _refusal(exc)
        if partial is None:
            return _unknown(request.transfer_id)
        partial.alive_ns = self._reactor.now_ns()
        if partial.finishing:
            return VerifyReply(state=VerifyState.HASHING)
        if partial.error is not None:
            return _refusal(partial.error)
        bad = partial.bad_digest
        return VerifyReply(state=VerifyState.BAD_DIGEST if bad else VerifyState.INCOMPLETE)

    def _cancel(self, request: CancelRequest) -> CancelReply:
        """What came stays in the table, for a resume, until it has been idle for long."""
        self._out.cancel(request.transfer_id)
        return CancelReply()

    def _have(self, request: HaveRequest) -> HaveReply | Refusal:
        try:
            flags = [self._blobs.has(digest) is not None for digest in request.digests]
        except HalError as exc:
            return _refusal(exc)
        return HaveReply(bits=pack_bits(flags))

    # --- the table ---

    def _partial_for(self, request: OfferRequest) -> _Partial:
        """The entry that takes this offer's chunks. Raises HalError, TransferError."""
        digest, size, chunk_bytes = request.digest, request.size_bytes, request.chunk_bytes
        chunks = -(-size // chunk_bytes)
        if chunks > CHUNKS_MAX:
            raise TransferError(f"{chunks} chunks, at most {CHUNKS_MAX}", code="too_large")
        partial = self._partials.get(digest)
        if partial is not None and (partial.size_bytes, partial.chunk_bytes) != (size, chunk_bytes):
            if partial.finishing:
                raise TransferError("it is being hashed", code="queue_full")
            self._drop(partial)
            partial = None
        if partial is None:
            self._make_room()
        if partial is None or not partial.finishing:
            self._blobs.begin(digest, size)
        if partial is None:
            partial = _Partial(
                digest=digest,
                size_bytes=size,
                chunk_bytes=chunk_bytes,
                chunks=chunks,
                missing=chunks,
                have=bytearray(-(-chunks // 8)),
                alive_ns=self._reactor.now_ns(),
                transfer_id=request.transfer_id,
            )
            self._partials[digest] = partial
        self._listen(partial, request.transfer_id)
        return partial

    def _make_room(self) -> None:
        if len(self._partials) < PARTIALS_MAX:
            return
        now_ns = self._reactor.now_ns()
        idle = [partial for partial in self._partials.values() if not partial.finishing]
        oldest = min(idle, key=lambda partial: partial.alive_ns, default=None)
        if oldest is None or now_ns - oldest.alive_ns < EVICT_NS:
            text = f"{PARTIALS_MAX} objects are on their way in"
            raise TransferError(text, code="queue_full")
        self._drop(oldest)

    def _listen(self, partial: _Partial, transfer_id: int) -> None:
        """Take chunks under this id, and under no older one."""
        self._good.pop(transfer_id, None)
        if self._by_id.get(transfer_id) is partial:
            return
        self._unlisten(partial)
        other = self._by_id.get(transfer_id)
        if other is not None:
            self._unlisten(other)
        partial.transfer_id = transfer_id
        self._by_id[transfer_id] = partial
        self._route.listen(
            KIND_BLOB, transfer_id, lambda chunk, data: self._on_chunk(partial, chunk, data)
        )

    def _unlisten(self, partial: _Partial) -> None:
        if self._by_id.get(partial.transfer_id) is partial:
            del self._by_id[partial.transfer_id]
            self._route.forget(KIND_BLOB, partial.transfer_id)

    def _drop(self, partial: _Partial) -> None:
        """Raises HalError; the table is clean also then."""
        self._unlisten(partial)
        del self._partials[partial.digest]
        self._blobs.drop(partial.digest)

    def _sweep(self) -> None:
        """Drop what has stopped coming."""
        now_ns = self._reactor.now_ns()
        for partial in list(self._partials.values()):
            if not partial.finishing and now_ns - partial.alive_ns >= IDLE_NS:
                try:
                    self._drop(partial)
                except HalError:
                    self._route.counters["rx_drop_failed"] += 1
        self._cancel_sweep = self._reactor.call_at(now_ns + SWEEP_NS, self._sweep)

    # --- chunks ---

    def _on_chunk(self, partial: _Partial, chunk: int, data: bytes) -> None:
        offset = chunk * partial.chunk_bytes
        wanted = min(partial.chunk_bytes, partial.size_bytes - offset)
        if chunk >= partial.chunks or len(data) != wanted:
            self._route.counters["rx_bad_chunk"] += 1
            return
        if partial.have[chunk >> 3] >> (chunk & 7) & 1:
            self._route.counters["rx_chunk_again"] += 1
            return
        if partial.error is not None:
            return  # said at the next Verify
        try:
            self._blobs.write_chunk(partial.digest, offset, data)
        except HalError as exc:
            partial.error = exc
            return
        partial.alive_ns = self._reactor.now_ns()
        partial.take(chunk)
        if not partial.missing:
            self._finish(partial)

    def _finish(self, partial: _Partial) -> None:
        if not partial.finishing:
            partial.finishing = True
            deadline_ns = finish_deadline_ns(self._reactor.now_ns(), partial.size_bytes)
            self._blobs.submit_finish(
                partial.digest, deadline_ns, lambda result: self._finished(partial, result)
            )

    def _finished(self, partial: _Partial, result: HalError | None) -> None:
        partial.finishing = False
        partial.alive_ns = self._reactor.now_ns()
        if result is None:
            self._unlisten(partial)
            del self._partials[partial.digest]
            self._good[partial.transfer_id] = partial.digest
            if len(self._good) > GOOD_KEPT:
                self._good.popitem(last=False)
            return
        partial.forget_chunks()
        if isinstance(result, Refused):
            self._route.counters["rx_bad_digest"] += 1
            partial.bad_digest = True
        else:
            partial.error = result


def _refusal(error: HalError | TransferError) -> Refusal:
    text = str(error)
    if isinstance(error, StoreFull):
        return Refusal(reason=RefusalReason.NO_SPACE, text=text)
    if isinstance(error, HalError):
        return Refusal(reason=RefusalReason.INTERNAL, text=text)
    if error.code == "too_large":
        return Refusal(reason=RefusalReason.TOO_LARGE, text=text)
    return Refusal(reason=RefusalReason.LIMIT, retry_after_ms=RETRY_AFTER_MS, text=text)


def _unknown(transfer_id: int) -> Refusal:
    text = f"no transfer {transfer_id:#x}; offer it again"
    return Refusal(reason=RefusalReason.BAD_STATE, text=text)
