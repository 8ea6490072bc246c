"""What happened on the card, for people and scripts (INTERFACES.md, "events").

A bounded ring. A reader follows by sequence number: it resumes where it was, and what the ring has
lost in the meantime is shown as one record, never skipped in silence. A code that floods is cut
down to its rate, and how many were suppressed is said.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from firmware.tokens import Tokens
from hal.ports import Reactor

RING_EVENTS: Final = 4096
RATE_BURST: Final = 256  # of one code; a card that starts 200 components says each of them
RATE_PER_S: Final = 50
SUPPRESSED_REPORT_NS: Final = 1_000_000_000
EVENTS_A_TURN: Final = 16  # to one reader: with all readers far behind some 20 ms
MAX_SUBSCRIPTIONS: Final = 64
MAX_TEXT_CHARS: Final = 1024


class EventCode(StrEnum):
    """Stable names; scripts match on them. Append-only."""

    CARD_STARTED = "card.started"
    CARD_READY = "card.ready"
    CARD_STOPPING = "card.stopping"
    CARD_SAFE_MODE = "card.safe_mode"
    CARD_STALLED = "card.stalled"
    CARD_CRASHED = "card.crashed"
    JOURNAL_FAILED = "journal.failed"
    BUS_DOWN = "bus.down"
    BUS_UP = "bus.up"
    LINK_DOWN = "link.down"
    LINK_UP = "link.up"
    WINDOW_DOWN = "window.down"
    WINDOW_UP = "window.up"
    CNM_FOUND = "cnm.found"
    CNM_BOOTED = "cnm.booted"
    CNM_LEASED = "cnm.leased"
    CNM_SUSPECT = "cnm.suspect"
    CNM_RETURNED = "cnm.returned"
    CNM_FENCING = "cnm.fencing"
    CNM_FENCED = "cnm.fenced"
    CNM_QUARANTINED = "cnm.quarantined"
    CNM_REFUSED = "cnm.refused"
    CNM_POWER = "cnm.power"
    CNM_DRAINING = "cnm.draining"
    CNM_DRAINED = "cnm.drained"
    CNM_UNDRAINED = "cnm.undrained"
    CNM_OVERLOADED = "cnm.overloaded"
    CNM_RECOVERED = "cnm.recovered"
    CNM_AGENT_LOST = "cnm.agent_lost"
    CNM_AGENT_BACK = "cnm.agent_back"
    CNM_TEMPERATURE = "cnm.temperature"
    WORKLOAD_SUBMITTED = "workload.submitted"
    WORKLOAD_READY = "workload.ready"
    WORKLOAD_REMOVING = "workload.removing"
    WORKLOAD_REMOVED = "workload.removed"
    INSTANCE_PENDING = "instance.pending"
    INSTANCE_ASSIGNED = "instance.assigned"
    INSTANCE_STAGING = "instance.staging"
    INSTANCE_STARTING = "instance.starting"
    INSTANCE_RUNNING = "instance.running"
    INSTANCE_HEALTHY = "instance.healthy"
    INSTANCE_UNHEALTHY = "instance.unhealthy"
    INSTANCE_EXITED = "instance.exited"
    INSTANCE_FAILED = "instance.failed"
    INSTANCE_RESTARTING = "instance.restarting"
    INSTANCE_STOPPING = "instance.stopping"
    INSTANCE_STOPPED = "instance.stopped"
    INSTANCE_REMOVED = "instance.removed"
    INSTANCE_ADOPTED = "instance.adopted"
    INSTANCE_QUARANTINED = "instance.quarantined"
    INSTANCE_LOST = "instance.lost"
    INSTANCE_FAILOVER = "instance.failover"
    INSTANCE_MIGRATING = "instance.migrating"
    INSTANCE_MIGRATED = "instance.migrated"
    INSTANCE_MIGRATION_FAILED = "instance.migration_failed"
    INSTANCE_PREEMPTED = "instance.preempted"
    TRANSFER_STARTED = "transfer.started"
    TRANSFER_FINISHED = "transfer.finished"
    TRANSFER_RESUMED = "transfer.resumed"
    TRANSFER_FAILED = "transfer.failed"
    VOLUME_STAGED = "volume.staged"
    VOLUME_FLUSHED = "volume.flushed"
    VOLUME_FLUSH_FAILED = "volume.flush_failed"
    VOLUME_STALE = "volume.stale"
    IMAGE_IMPORTED = "image.imported"
    IMAGE_REMOVED = "image.removed"
    RPC_REFUSED = "rpc.refused"
    EVENTS_GAP = "events.gap"
    EVENTS_SUPPRESSED = "events.suppressed"
    LINK_DIALECT = "link.dialect"
    BUS_MUX = "bus.mux"
    SENSOR_ABSENT = "sensor.absent"
    SENSOR_WRONG = "sensor.wrong"
    SENSOR_FAILED = "sensor.failed"
    SENSOR_STUCK = "sensor.stuck"
    SENSOR_LIMIT = "sensor.limit"
    SENSOR_GOOD = "sensor.good"
    SLOT_LINK = "slot.link"
    CXL_DEVICE = "cxl.device"  # a memory device came, went, isn't well, or had an event
    FRU_BAD = "fru.bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of the story. `mono_ms` is CLOCK_BOOTTIME, `at` the wall clock (ISO, UTC)."""

    seq: int
    at: str
    mono_ms: int
    code: EventCode
    cnm: str | None = None
    instance: str | None = None
    text: str = ""
    data: Mapping[str, object] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        return {
            "seq": self.seq,
            "at": self.at,
            "mono_ms": self.mono_ms,
            "code": str(self.code),
            "cnm": self.cnm,
            "instance": self.instance,
            "text": self.text,
            "data": dict(self.data),
        }


def iso_ms(wall_ns: int) -> str:
    """2026-03-01T12:00:00.123Z."""
    seconds, rest_ns = divmod(wall_ns, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest_ns // 1_000_000:03d}Z"


class _Rate(Tokens):
    """Of one code; `suppressed` since the last report."""

    def __init__(self, now_ns: int) -> None:
        super().__init__(now_ns, per_s=RATE_PER_S, burst=RATE_BURST)
        self.suppressed = 0


class Subscription:
    """A reader's place in the ring. `deliver(event)` says False when it can take no more for
    now; `pump()` goes on from there."""

    def __init__(self, log: "EventLog", cursor: int, deliver: Callable[[Event], bool]) -> None:
        self._log = log
        self._cursor = cursor  # sequence number of the next event to deliver
        self._deliver = deliver
        self._pumping = False
        self._posted = False  # the rest is delivered in another turn

    def pump(self) -> None:
        """Deliver what has come, until the reader is full; some in this turn of the loop, the rest
        in the next ones. A reader that emits events itself is safe: they are delivered by the pump
        that is running."""
        if self._pumping or self._posted:
            return
        self._pumping = True
        try:
            for _ in range(EVENTS_A_TURN):
                if self._cursor >= self._log.next_seq:
                    return
                event = self._log.at(self._cursor)
                if not self._deliver(event):
                    return
                # a gap record stands for all that is lost and carries the last lost number
                self._cursor = event.seq + 1
        finally:
            self._pumping = False
        self._posted = True
        self._log.post(self._go_on)

    def _go_on(self) -> None:
        self._posted = False
        if self._log.has(self):
            self.pump()

    def close(self) -> None:
        self._log.forget(self)


class EventLog:
    """The card's events. Loop thread only."""

    def __init__(
        self, reactor: Reactor, wall_ns: Callable[[], int], *, ring_events: int = RING_EVENTS
    ) -> None:
        self._reactor = reactor
        self._wall_ns = wall_ns
        self._ring: deque[Event] = deque(maxlen=ring_events)
        self._rates: dict[EventCode, _Rate] = {}  # at most one for each code
        self._subscriptions: OrderedDict[int, Subscription] = OrderedDict()
        self._report_due = False
        self.tap: Callable[[Event], None] = lambda _event: None  # hears each one first
        self.next_seq = 1
        self.suppressed = 0

    @property
    def first_seq(self) -> int:
        """The oldest event that can still be read."""
        return self.next_seq - len(self._ring)

    def emit(
        self,
        code: EventCode,
        text: str = "",
        *,
        cnm: str | None = None,
        instance: str | None = None,
        data: Mapping[str, object] | None = None,
    ) -> Event | None:
        """Record it and tell the subscribers; None when this code is over its rate."""
        now_ns = self._reactor.now_ns()
        rate = self._rates.get(code)
        if rate is None:
            rate = self._rates[code] = _Rate(now_ns)
        if not rate.take(now_ns):
            rate.suppressed += 1
            self.suppressed += 1
            if not self._report_due:
                self._report_due = True
                self._reactor.call_at(now_ns + SUPPRESSED_REPORT_NS, self._report_suppressed)
            return None
        return self._record(code, text, cnm, instance, data)

    def _record(
        self,
        code: EventCode,
        text: str,
        cnm: str | None,
        instance: str | None,
        data: Mapping[str, object] | None,
    ) -> Event:
        event = Event(
            seq=self.next_seq,
            at=iso_ms(self._wall_ns()),
            mono_ms=self._reactor.now_ns() // 1_000_000,
            code=code,
            cnm=cnm,
            instance=instance,
            text=text[:MAX_TEXT_CHARS],
            data=dict(data) if data else {},
        )
        self._ring.append(event)
        self.next_seq += 1
        self.tap(event)
        for subscription in list(self._subscriptions.values()):
            subscription.pump()
        return event

    def _report_suppressed(self) -> None:
        self._report_due = False
        for code, rate in self._rates.items():
            if rate.suppressed:
                count, rate.suppressed = rate.suppressed, 0
                self._record(
                    EventCode.EVENTS_SUPPRESSED,
                    f"suppressed {count} events {code}: more than {RATE_PER_S} a second",
                    None,
                    None,
                    {"code": str(code), "count": count},
                )

    def at(self, seq: int) -> Event:
        """The event with this number, or a gap record that ends just before the oldest one."""
        first = self.first_seq
        if seq >= first:
            return self._ring[seq - first]
        oldest = self._ring[0]
        return Event(
            seq=first - 1,
            at=oldest.at,
            mono_ms=oldest.mono_ms,
            code=EventCode.EVENTS_GAP,
            text=f"events {seq} to {first - 1} are no longer kept",
            data={"first_lost_seq": seq, "last_lost_seq": first - 1},
        )

    def since(self, seq: int, limit: int = RING_EVENTS) -> Sequence[Event]:
        """Events after `seq`, oldest first, at most `limit`; a gap shows as the first record."""
        found: list[Event] = []
        cursor = max(seq + 1, 1)
        while cursor < self.next_seq and len(found) < limit:
            event = self.at(cursor)
            found.append(event)
            cursor = event.seq + 1
        return found

    def subscribe(
        self, since_seq: int | None, deliver: Callable[[Event], bool]
    ) -> Subscription | None:
        """Follow the events after `since_seq` (None: from now on). A number that is yet to come
        (the daemon was restarted since) starts at the oldest. None when there are too many
        subscriptions already. Nothing is delivered before the first `pump()`."""
        if len(self._subscriptions) >= MAX_SUBSCRIPTIONS:
            return None
        if since_seq is None:
            cursor = self.next_seq
        elif since_seq >= self.next_seq:
            cursor = self.first_seq
        else:
            cursor = max(since_seq + 1, 1)
        subscription = Subscription(self, cursor, deliver)
        self._subscriptions[id(subscription)] = subscription
        return subscription

    def post(self, call: Callable[[], None]) -> None:
        """For a subscription: in the next turn of the loop."""
        self._reactor.post(call)

    def has(self, subscription: Subscription) -> bool:
        return id(subscription) in self._subscriptions

    def forget(self, subscription: Subscription) -> None:
        self._subscriptions.pop(id(subscription), None)
