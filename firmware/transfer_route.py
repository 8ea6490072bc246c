"""What the transfers of one window share: who gets a chunk, and whose chunk goes next.

Incoming chunks are dispatched by (kind, transfer id). Outgoing ones come from *sources*, which
take turns so that a large blob does not hold up a small one; CHUNKS_PER_TURN and the room in the
ring bound what one handler does. Loop thread only.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from firmware.endpoint import Deferred, RequestError, RequestRefused
from firmware.window import WindowChannel
from hal.ports import Reactor
from protocol.apf import Body, Refusal, RefusalReason

MS: Final = 1_000_000
FINISH_NS: Final = 60_000 * MS  # to hash an object, and 1 s more for each 20 MB
FINISH_BYTES_PER_S: Final = 20_000_000
CHUNKS_PER_TURN: Final = 16
LISTENERS_MAX: Final = 1024
B = TypeVar("B", bound=Body)
Item = tuple[int, int, int, bytes]  # kind, transfer id, chunk, data
OnData = Callable[[int, bytes], None]  # chunk, data


class TransferError(Exception):
    """A transfer that did not end well. `code` is stable: no_blob, no_space, queue_full, refused,
    bad_digest, stalled, deadline, lost, store, closed. `refusal` is the far end's, if it said no.
    """

    def __init__(self, text: str, *, code: str = "lost", refusal: Refusal | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.refusal = refusal


Done = Callable[[TransferError | None], None]
Progress = Callable[[int, int], None]  # bytes there, bytes in all
AGAIN: Final = frozenset(  # refusals after which a transfer may be begun again (SPEC 5.1)
    {
        RefusalReason.BUSY,
        RefusalReason.LIMIT,
        RefusalReason.NO_WINDOW,
        RefusalReason.BAD_STATE,  # the far end forgot the transfer: offer it again
    }
)


def request_error(error: RequestError) -> TransferError:
    """The end of a transfer that the far end refused or did not answer."""
    if isinstance(error, RequestRefused):
        no_space = error.refusal.reason == RefusalReason.NO_SPACE
        code = "no_space" if no_space else "refused"
        return TransferError(str(error), code=code, refusal=error.refusal)
    return TransferError(str(error), code="lost")


def finish_deadline_ns(now_ns: int, size_bytes: int) -> int:
    """When hashing an object of that size has failed."""
    return now_ns + FINISH_NS + size_bytes * 1_000 // FINISH_BYTES_PER_S * MS


class Requester(Protocol):
    """The asking side of `firmware.endpoint.Endpoint`."""

    def request(
        self, body: Body, done: Callable[[Any], None], *, timeout_ms: int = ..., attempts: int = ...
    ) -> None: ...


class Server(Protocol):
    """The answering side of `firmware.endpoint.Endpoint`."""

    def serve(self, request: type[B], handler: Callable[[B], Body | Deferred]) -> None: ...


class Source(Protocol):
    """Something that has chunks to send."""

    def next_chunk(self) -> Item | None:
        """The next one, or None when there is no more: the source is forgotten then."""
        ...

    def chunk_sent(self) -> None:
        """The chunk given last is in the ring."""
        ...

    def all_sent(self) -> None:
        """After None: every chunk is in the ring, or there were none."""
        ...


class ChunkRoute:
    """Takes over the channel's callbacks (not `on_fault`)."""

    def __init__(self, channel: WindowChannel, reactor: Reactor) -> None:
        self.channel = channel
        self.counters: Counter[str] = Counter()
        self._reactor = reactor
        self._listeners: dict[tuple[int, int], OnData] = {}  # at most LISTENERS_MAX
        self._sources: list[Source] = []  # bounded by those who add them
        self._held: tuple[Source, Item] | None = None  # found no room
        self._taken: list[tuple[int, Callable[[], None]]] = []
        self._on_connect: list[Callable[[], None]] = []
        self._posted = False
        channel.on_chunk = self._chunk
        channel.on_space = self._pump
        channel.on_taken = self._check_taken
        channel.on_connect = self._connected

    # --- incoming ---

    def listen(self, kind: int, transfer_id: int, call: OnData) -> None:
        """Give the chunks of one transfer to `call`. Raises TransferError when too many listen."""
        if len(self._listeners) >= LISTENERS_MAX and (kind, transfer_id) not in self._listeners:
            raise TransferError(f"{LISTENERS_MAX} transfers listen already", code="queue_full")
        self._listeners[kind, transfer_id] = call
        self.channel.expect(True)

    def forget(self, kind: int, transfer_id: int) -> None:
        self._listeners.pop((kind, transfer_id), None)
        if not self._listeners:
            self.channel.expect(False)

    def _chunk(self, kind: int, transfer_id: int, chunk: int, data: bytes) -> None:
        call = self._listeners.get((kind, transfer_id))
        if call is None:
            self.counters["rx_unrouted"] += 1  # of a transfer that has ended
        else:
            call(chunk, data)

    # --- outgoing ---

    def add(self, source: Source) -> None:
        """Let `source` send from the next turn on."""
        self._sources.append(source)
        self._post()

    def discard(self, source: Source) -> None:
        """Forget a source; unknown ones are ignored."""
        if source in self._sources:
            self._sources.remove(source)
        if self._held is not None and self._held[0] is source:
            self._held = None

    def when_taken(self, call: Callable[[], None]) -> None:
        """Run `call` once everything sent so far was taken by the peer (or lost)."""
        self._taken.append((self.channel.tx_put, call))
        self._reactor.post(self._check_taken)

    def on_connect(self, call: Callable[[], None]) -> None:
        """Also run `call` at each new connection of the window."""
        self._on_connect.append(call)

    def _check_taken(self) -> None:
        gone = self.channel.tx_gone
        while self._taken and self._taken[0][0] <= gone:
            self._taken.pop(0)[1]()

    def _connected(self) -> None:
        self.counters["connects"] += 1
        for call in self._on_connect:
            call()
        self._post()

    def _post(self) -> None:
        if not self._posted:
            self._posted = True
            self._reactor.post(self._on_post)

    def _on_post(self) -> None:
        self._posted = False
        self._pump()

    def _pump(self) -> None:
        """Send until the ring is full, nobody has more, or the turn is over."""
        for _ in range(CHUNKS_PER_TURN):
            held, self._held = self._held, None
            if held is None:
                if not self._sources:
                    return
                source = self._sources.pop(0)
                item = source.next_chunk()
                if item is None:
                    source.all_sent()
                    continue
                self._sources.append(source)
            else:
                source, item = held
            if not self.channel.send(*item):
                self._held = (source, item)
                return  # on_space comes
            source.chunk_sent()
        self._post()
