"""One end of a window: handshake, doorbell and timers around the rings. protocol/SPEC.md 14.

Loop thread only. The handshake, in short (14.3 says why it holds): each end publishes a random
session and echoes the peer's. A session of ours is connected at most once; before a second session
of the peer is accepted, ours is replaced, so that both rings always begin empty, at entry 0. The
peer's session, its echo and its session again are read as one snapshot.

Work is bounded: CHUNKS_PER_TURN in one handler, then the loop gets its turn. Rings of the doorbell
are hints; a timer covers lost ones, fast while the peer owes us progress.
"""

from collections import Counter
from collections.abc import Callable
from typing import Final

from firmware.window_ring import RingBroken, RxRing, TxRing
from hal.errors import HalError, PeerGone
from hal.ports import Buffer, Doorbell, Entropy, Event, Reactor, Window
from protocol.errors import ProtocolError
from protocol.window import (
    GEOMETRY_BYTES,
    OFF_ECHO,
    OFF_GEOMETRY,
    OFF_SESSION,
    SESSION_GONE,
    geometry_for,
    parse_geometry,
)

RING_ENTRIES: Final = 64
SLOT_BYTES: Final = 65_536
CHUNKS_PER_TURN: Final = 16
MS: Final = 1_000_000
POLL_BUSY_NS: Final = 50 * MS  # while the peer owes us progress
POLL_IDLE_NS: Final = 500 * MS
POLL_QUIET_NS: Final = 5_000 * MS  # connected, and nobody owes or awaits anything
FAULT_BACKOFF_NS: Final = 100 * MS  # doubled at each fault in a row
FAULT_BACKOFF_MAX_NS: Final = 10_000 * MS
SNAPSHOT_TRIES: Final = 4  # a peer that changes under our eyes each time waits for the next poll

OnChunk = Callable[[int, int, int, bytes], None]  # kind, transfer_id, chunk, data (checked copy)


def _nothing() -> None:
    pass


class WindowChannel:
    """Chunks to and from the peer over one window. Window and doorbell stay the caller's, who
    closes them after `close`; a channel may be attached again after `close` or a fault."""

    def __init__(
        self,
        window: Window,
        doorbell: Doorbell,
        reactor: Reactor,
        entropy: Entropy,
        *,
        on_chunk: OnChunk = lambda kind, transfer_id, chunk, data: None,
        on_space: Callable[[], None] = _nothing,
        on_taken: Callable[[], None] = _nothing,
        on_connect: Callable[[], None] = _nothing,
        on_disconnect: Callable[[], None] = _nothing,
        on_fault: Callable[[str], None] = lambda text: None,
        ring_entries: int = RING_ENTRIES,
        slot_bytes: int = SLOT_BYTES,
        keeps: bool = False,
    ) -> None:
        """`on_space`: there is room after a `send` that said False. `on_taken`: `tx_gone` grew.
        `on_connect`: a new connection; what was sent over the one before may not have arrived.
        `on_disconnect`: it ended, and nothing was sent yet over another. `keeps`: what came is the
        peer's again only after `give_back`.
        `on_fault`: the peer broke the layout, or the hardware failed, in words. Raises ValueError
        for a geometry that does not fit the window."""
        self.on_chunk, self.on_space, self.on_taken = on_chunk, on_space, on_taken
        self.on_connect, self.on_fault = on_connect, on_fault
        self.on_disconnect = on_disconnect
        self.slot_bytes = slot_bytes
        self.connected = False
        self._held = False
        self.counters: Counter[str] = Counter()
        self.tx_put = 0  # chunks ever sent
        self._tx_gone_seen = 0
        self._window, self._doorbell = window, doorbell
        self._reactor, self._entropy = reactor, entropy
        self._geometry = geometry_for(ring_entries, slot_bytes, window.tx_bytes)
        self._tx, self._rx = TxRing(window, self._geometry), RxRing(window, keeps=keeps)
        self._session = 0  # ours
        self._used = False  # ours was connected: no second peer may be met under it
        self._peer = 0  # the peer's session that we accepted
        self._want_space = False
        self._expecting = False
        self._attached = self._posted = self._watching = False
        self._cancel_timer: Callable[[], None] = _nothing
        self._timer_ns = 0  # the period that the armed timer stands for; 0: none
        self._faults_in_row = 0
        self._quiet_until_ns = 0  # after a fault no session is accepted before this

    # --- public ---

    def attach(self) -> None:
        """Publish a new session and start looking for the peer. Raises HalError."""
        assert not self._attached, "attached twice"
        self._renew()
        self._attached = True
        try:
            self._watch()
            self._ring()
        except HalError:
            self._stop()
            raise
        self._kick()

    def close(self) -> None:
        """Tell the peer that this end goes, and stop. Twice is fine."""
        if not self._attached:
            return
        try:
            self._window.publish(OFF_SESSION, 0)
            self._doorbell.ring()
        except HalError:
            self.counters["close_failed"] += 1  # nobody is left to tell
        self._stop()

    @property
    def attached(self) -> bool:
        """False before `attach`, after `close`, and after the window itself has failed."""
        return self._attached

    @property
    def tx_gone(self) -> int:
        """Chunks of `tx_put` that the peer has taken, or that a lost connection took along."""
        return self.tx_put - self._tx.outstanding

    def send(self, kind: int, transfer_id: int, chunk: int, data: Buffer) -> bool:
        """Put one chunk into the ring. False when there is no connection or no room now; then
        `on_space` follows when there is. Raises ValueError above `slot_bytes`."""
        if len(data) > self.slot_bytes:
            raise ValueError(f"chunk of {len(data)} B, a slot has {self.slot_bytes} B")
        if not self.connected:
            self._want_space = True
            return False
        try:
            if not self._tx.has_room():
                self._want_space = True
                self.counters["tx_full"] += 1
                self._arm(POLL_BUSY_NS)
                return False
            self._tx.put(kind, transfer_id, chunk, data)
            self._ring()
        except RingBroken as exc:
            self._want_space = True
            self._broken(exc)
            return False
        except HalError as exc:
            self._fail(exc)
            return False
        self.tx_put += 1
        self.counters["tx_bytes"] += len(data)
        self._arm(POLL_BUSY_NS)
        return True

    def hold(self, held: bool) -> None:
        """Take no more chunks for now, from the very next one on; or go on."""
        self._held = held
        if not held and self._attached:
            self._kick()

    def give_back(self) -> None:
        """The oldest chunk that `keeps` holds has been dealt with. Raises HalError."""
        self._rx.give_back()
        self._ring()  # the peer may wait for room

    def expect(self, expecting: bool) -> None:
        """Say whether chunks may come, so that a lost doorbell or a dead window shows soon."""
        self._expecting = expecting
        if expecting and self._attached:
            self._arm(POLL_IDLE_NS)

    # --- turns ---

    def _kick(self) -> None:
        if not self._posted:
            self._posted = True
            self._reactor.post(self._on_post)

    def _on_post(self) -> None:
        self._posted = False
        self._poll()

    def _on_bell(self, events: Event) -> None:
        try:
            if events & Event.HANGUP:
                self._unwatch()
                self._arm(POLL_IDLE_NS)  # it looks whether it is back
            else:
                self._clear_bell()
        except HalError as exc:
            self._fail(exc)
        self._poll()

    def _on_timer(self) -> None:
        self._timer_ns = 0
        if not self._attached:
            return
        try:
            if not self._watching:
                self._watch()
            self._announce()
            if self._tx.outstanding or not self.connected:
                self._ring()  # the last one may have been lost
        except HalError as exc:
            self._fail(exc)
            return
        self._poll()

    def _poll(self) -> None:
        if not self._attached:
            return
        try:
            self._look()
            if self.connected and not self._held:
                self._consume()
            if self.connected and self._tx.refresh():
                self._faults_in_row = 0
            if self.tx_gone != self._tx_gone_seen:
                self._tx_gone_seen = self.tx_gone
                self.on_taken()
            if self.connected and self._want_space and self._tx.has_room():
                self._want_space = False
                self.on_space()
        except RingBroken as exc:
            self._broken(exc)
        except HalError as exc:
            self._fail(exc)
        if self._attached:
            if self.connected and self._tx.outstanding:
                self._arm(POLL_BUSY_NS)
            else:
                quiet = self.connected and self._watching and not self._expecting
                self._arm(POLL_QUIET_NS if quiet else POLL_IDLE_NS)

    def _consume(self) -> None:
        """Take a bounded number of entries; bad ones are counted and dropped."""
        waiting = self._rx.waiting()
        session = self._session
        for _ in range(min(waiting, CHUNKS_PER_TURN)):
            try:
                kind, transfer_id, chunk, data = self._rx.take()
            except ProtocolError as exc:
                self.counters[f"rx_{exc.code}"] += 1
                continue
            self._faults_in_row = 0
            self.counters["rx_chunks"] += 1
            self.counters["rx_bytes"] += len(data)
            self.on_chunk(kind, transfer_id, chunk, data)
            if self._session != session or not self.connected:  # the handler closed or met a fault
                return
            if self._held:
                break
        if waiting:
            self._ring()  # the peer may wait for room
        if waiting > CHUNKS_PER_TURN and not self._held:
            self._kick()

    # --- handshake (SPEC 14.3) ---

    def _look(self) -> None:
        """Follow the peer's session; sets `connected`."""
        for _ in range(SNAPSHOT_TRIES):
            peer = self._window.acquire(OFF_SESSION)
            echo = self._window.acquire(OFF_ECHO)
            if self._window.acquire(OFF_SESSION) != peer:
                continue
            if peer in (0, SESSION_GONE):
                self._lose_peer()
            elif peer == self._peer:
                self._set_connected(echo == self._session)
            elif self._accept(peer):
                continue
            return

    def _lose_peer(self) -> None:
        if self._peer:
            self.counters["peer_detached"] += 1
            self._window.publish(OFF_ECHO, 0)
        self._peer = 0
        self._disconnect()

    def _accept(self, peer: int) -> bool:
        """Meet a session of the peer; True: look again (its echo may be there already)."""
        self._disconnect()
        if self._reactor.now_ns() < self._quiet_until_ns:
            return False
        raw = bytes(self._window.read(OFF_GEOMETRY, GEOMETRY_BYTES))
        if self._window.acquire(OFF_SESSION) != peer:
            return True
        try:
            geometry = parse_geometry(raw, self._window.rx_bytes)
        except ProtocolError as exc:
            self._fault(exc.code, str(exc))
            return False
        if self._used:
            self._renew()
        self._rx.reset(peer, geometry)
        self._peer = peer
        self._window.publish(OFF_ECHO, peer)
        self._ring()
        return True

    def _set_connected(self, connected: bool) -> None:
        if connected and not self.connected:
            self.connected = self._used = True
            self.counters["connects"] += 1
            self.on_connect()
        elif not connected:
            self._disconnect()

    def _disconnect(self) -> None:
        if self.connected:
            self.connected = False
            self.on_disconnect()

    def _renew(self) -> None:
        """A new session of ours, both its rings empty."""
        self._window.publish(OFF_SESSION, 0)  # first: a reader of the old one stops here
        self._peer, self._used = 0, False
        self._disconnect()
        session = 0
        while session in (0, SESSION_GONE, self._session):
            session = int.from_bytes(self._entropy.random_bytes(4), "little")
        self._session = session
        self._tx.reset(session)
        self._announce()
        self.counters["sessions"] += 1

    def _announce(self) -> None:
        """Write our header as it is, the session last. Repeated at each timer, so that a store
        which the fabric lost, or a bit that turned over, does not stop us for ever."""
        self._window.write(OFF_GEOMETRY, self._geometry.to_bytes())
        self._tx.announce()
        self._rx.announce()
        self._window.publish(OFF_ECHO, self._peer)
        self._window.publish(OFF_SESSION, self._session)

    # --- faults ---

    def _broken(self, exc: RingBroken) -> None:
        """An index that can't be: unless the peer has just begun anew, it misbehaves."""
        try:
            if self._window.acquire(OFF_SESSION) == self._peer:
                self._fault(exc.code, str(exc))
            else:
                self._kick()
        except HalError as error:
            self._fail(error)

    def _fault(self, code: str, text: str) -> None:
        """Detach from the peer, begin a new session of ours, and meet nobody for a while."""
        self.counters[f"fault_{code}"] += 1
        backoff_ns = min(FAULT_BACKOFF_NS << min(self._faults_in_row, 16), FAULT_BACKOFF_MAX_NS)
        self._faults_in_row += 1
        self._quiet_until_ns = self._reactor.now_ns() + backoff_ns
        self._renew()
        self._ring()
        self.on_fault(f"window peer: {text}")

    def _fail(self, exc: HalError) -> None:
        """The window itself is gone; whoever owns it may attach again."""
        self.counters["failures"] += 1
        self._stop()
        self.on_fault(f"window: {exc}")

    def _stop(self) -> None:
        self._attached = False
        self._peer = 0
        self._cancel_timer()
        self._timer_ns = 0
        self._unwatch()
        self._disconnect()

    # --- doorbell and timer ---

    def _watch(self) -> None:
        self._watching = True
        if self._clear_bell():
            self._reactor.watch(self._doorbell.handle, Event.READ, self._on_bell)

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            self._reactor.unwatch(self._doorbell.handle)

    def _clear_bell(self) -> bool:
        """False when the bell is out of use: its far end is dead, and would ring for ever."""
        try:
            self._doorbell.clear()
        except PeerGone:
            self._bell_gone()
            return False
        return True

    def _ring(self) -> None:
        try:
            self._doorbell.ring()
        except PeerGone:
            self._bell_gone()

    def _bell_gone(self) -> None:
        """Nobody will ring when the next one comes: look for it."""
        self.counters["bell_gone"] += 1
        self._unwatch()
        self._arm(POLL_IDLE_NS)

    def _arm(self, period_ns: int) -> None:
        """Look again after `period_ns` at the latest."""
        if self._timer_ns and self._timer_ns <= period_ns:
            return
        self._cancel_timer()
        self._timer_ns = period_ns
        self._cancel_timer = self._reactor.call_at(
            self._reactor.now_ns() + period_ns, self._on_timer
        )
