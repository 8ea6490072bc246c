"""A card and a CNM joined by a fake window and a fake control link, with faults on both."""

import hashlib
import random
from collections.abc import Callable
from typing import Any

from firmware.endpoint import Deferred, RequestRefused, RequestTimedOut
from firmware.transfer import ChunkRoute, TransferReceiver, TransferSender
from firmware.window import WindowChannel
from hal.errors import HalError, Refused, StoreFull, Unavailable
from hal.ports import Buffer
from protocol.apf import Body, Ctx, Kind, Refusal, decode, encode
from tests.unit.firmware.window_fakes import MS, FakeReactor, SeededEntropy, WindowRig

CTX = Ctx(card_uuid=b"c" * 16, epoch=7, boot_id=b"b" * 16)


class FakeBlobs:
    """`hal.ports.BlobStore` in memory; keeps the rule that only what hashes right gets in."""

    def __init__(self, reactor: FakeReactor, *, hash_ns: int = MS) -> None:
        self._reactor, self.hash_ns = reactor, hash_ns
        self.whole: dict[bytes, bytes] = {}
        self.partial: dict[bytes, bytearray] = {}
        self.free_bytes = 1 << 30
        self.fail_writes: HalError | None = None
        self.written = 0

    def has(self, digest: bytes) -> int | None:
        return len(self.whole[digest]) if digest in self.whole else None

    def read(self, digest: bytes, offset: int, length: int) -> bytes:
        if digest not in self.whole:
            raise Unavailable(digest.hex())
        return self.whole[digest][offset : offset + length]

    def put(self, data: Buffer) -> bytes:
        digest = hashlib.sha256(data).digest()
        self.whole[digest] = bytes(data)
        return digest

    def begin(self, digest: bytes, size_bytes: int) -> None:
        if digest in self.whole:
            return
        if len(self.partial.get(digest, b"")) != size_bytes or digest not in self.partial:
            if size_bytes > self.free_bytes:
                raise StoreFull(f"{size_bytes} B")
            self.partial[digest] = bytearray(size_bytes)

    def write_chunk(self, digest: bytes, offset: int, data: Buffer) -> None:
        if self.fail_writes is not None:
            raise self.fail_writes
        room = self.partial.get(digest)
        if room is None or offset + len(data) > len(room):
            raise Refused(f"{len(data)} B at {offset}")
        room[offset : offset + len(data)] = data
        self.written += len(data)

    def submit_finish(
        self, digest: bytes, deadline_ns: int, done: Callable[[HalError | None], None]
    ) -> None:
        def finish() -> None:
            data = self.partial.pop(digest, None)
            if data is None and digest not in self.whole:
                done(Refused("was not begun"))
            elif data is not None and hashlib.sha256(data).digest() != digest:
                done(Refused("digest is wrong"))
            else:
                if data is not None:
                    self.whole[digest] = bytes(data)
                done(None)

        self._reactor.call_at(self._reactor.now_ns() + self.hash_ns, finish)

    def submit_ingest(self, *args: Any) -> None:
        raise NotImplementedError

    def drop(self, digest: bytes) -> None:
        self.whole.pop(digest, None)
        self.partial.pop(digest, None)

    def digests(self, first: int | None = None) -> list[bytes]:
        return sorted(digest for digest in self.whole if first in (None, digest[0]))


class FakeLink:
    """Requests over bytes, as the real endpoint does it, without MCTP below."""

    def __init__(self, reactor: FakeReactor, *, one_way_ns: int = 2 * MS) -> None:
        self._reactor, self.one_way_ns = reactor, one_way_ns
        self._handlers: dict[int, Callable[[Any], Body | Deferred]] = {}
        self.lose: Callable[[], bool] = lambda: False
        self.requests: list[Body] = []

    def serve(self, request: type[Any], handler: Callable[[Any], Body | Deferred]) -> None:
        self._handlers[request.OPCODE] = handler

    def request(
        self,
        body: Body,
        done: Callable[[Any], None],
        *,
        timeout_ms: int = 500,
        attempts: int = 3,
    ) -> None:
        message = encode(body, kind=Kind.REQUEST, message_id=1)
        self.requests.append(body)
        if self.lose():
            self._later(timeout_ms * attempts * MS, lambda: done(RequestTimedOut("lost")))
            return

        def arrive() -> None:
            request = decode(message).body
            answer = self._handlers[request.OPCODE](request)
            assert not isinstance(answer, Deferred)
            reply = encode(answer, kind=Kind.REPLY, message_id=1, opcode=body.OPCODE)
            self._later(self.one_way_ns, lambda: back(decode(reply).body))

        def back(reply: Body) -> None:
            done(RequestRefused("request", reply) if isinstance(reply, Refusal) else reply)

        self._later(self.one_way_ns, arrive)

    def _later(self, delay_ns: int, call: Callable[[], None]) -> None:
        self._reactor.call_at(self._reactor.now_ns() + delay_ns, call)


class TransferRig:
    """One card, one CNM. `drop`, `corrupt` and the window's halves are the test's to break."""

    SLOT = 256

    def __init__(self, *, ring_entries: int = 4, seed: int = 1, hash_ns: int = MS) -> None:
        self.windows = WindowRig(1 << 14)
        self.reactor = self.windows.reactor
        self.reactor.step_ns = 50_000
        self.link = FakeLink(self.reactor)
        self.card_blobs = FakeBlobs(self.reactor, hash_ns=hash_ns)
        self.cnm_blobs = FakeBlobs(self.reactor, hash_ns=hash_ns)
        self.refusal: Refusal | None = None
        self.random = random.Random(seed)
        self._ring_entries, self._seed = ring_entries, seed
        self.faults: list[str] = []
        self.start_card()
        self.start_cnm()

    def _channel(self, side: int) -> WindowChannel:
        self._seed += 1
        return WindowChannel(
            self.windows.window(side),
            self.windows.bells[side],
            self.reactor,
            SeededEntropy(self._seed),
            on_fault=self.faults.append,
            ring_entries=self._ring_entries,
            slot_bytes=self.SLOT,
        )

    def start_card(self) -> None:
        self.card_channel = self._channel(0)
        self.sender = TransferSender(
            self.link,
            self.card_channel,
            self.card_blobs,
            self.reactor,
            lambda: CTX,
            entropy=SeededEntropy(self._seed + 100),
        )
        self.card_channel.attach()

    def start_cnm(self, *, keep_store: bool = True) -> None:
        if not keep_store:
            self.cnm_blobs.partial.clear()
        self.cnm_channel = self._channel(1)
        self.route = ChunkRoute(self.cnm_channel, self.reactor)
        self.receiver = TransferReceiver(
            self.link, self.route, self.cnm_blobs, self.reactor, lambda ctx: self.refusal
        )
        self.cnm_channel.attach()

    def kill_cnm(self) -> None:
        """As kill -9 does it: nothing is said to anybody."""
        self.receiver.close()
        self.cnm_channel._stop()

    def blob(self, size: int) -> tuple[bytes, bytes]:
        data = self.random.randbytes(size)
        return hashlib.sha256(data).digest(), data
