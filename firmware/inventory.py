"""The modules as the card knows them now: one `Cnm` a slot, in memory only.

What must survive a restart of the daemon (granted, fencing, draining, power wanted) is in the
journal; what is here is observed anew by discovery, heartbeats and status reports.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from firmware.assignments import Place
from firmware.board_types import Slot
from firmware.decide import LIVE, Seen, Sight
from firmware.endpoint import Endpoint
from firmware.lease import CardLease, LeaseState
from firmware.transfer import TransferSender
from firmware.window import WindowChannel
from hal.ports import ByteStream, Done, Doorbell, SlotState, Window
from protocol.apf import (
    CapabilitiesReply,
    Heartbeat,
    InstanceStatus,
    InstanceUsage,
    Telemetry,
)


class CnmState(StrEnum):
    """What people and scripts see (`cnm ls`)."""

    OFF = "OFF"
    BOOTING = "BOOTING"
    QUARANTINED = "QUARANTINED"
    LEASED = "LEASED"
    SUSPECT = "SUSPECT"
    FENCING = "FENCING"
    FENCED = "FENCED"
    DRAINING = "DRAINING"


class CnmPorts(Protocol):
    """The hardware of one slot."""

    def open_mc(self) -> ByteStream: ...

    def open_agent(self) -> ByteStream: ...

    def open_window(self, deadline_ns: int, done: Done[tuple[Window, Doorbell]]) -> None: ...


@dataclass(slots=True)
class Cnm:
    """One slot and the module in it. Owned by the loop's thread."""

    id: str
    config: Slot
    lease: CardLease
    ports: CnmPorts
    mc: Endpoint
    agent: Endpoint
    runc_root: str | None = None  # where its runtime keeps its state, on the host (local board)
    power: SlotState | None = None
    power_wanted: bool = True
    draining: bool = False
    quarantine: str = ""  # why it is not used, in words
    uuid: bytes = b""
    uuid_before: bytes = b""  # of the module that the daemon before knew by this name
    software: str = ""
    capabilities: CapabilitiesReply | None = None
    agent_ready: bool = False  # its HELLO had the MC's boot id, its window is attached
    granted_durable: bytes = b""  # boot id that the journal says was granted
    heartbeat: Heartbeat | None = None
    heartbeat_ns: int | None = None
    channel: WindowChannel | None = None
    transfers: TransferSender | None = None
    observed: dict[str, InstanceStatus] = field(default_factory=dict)
    observed_seq: int | None = None  # status_seq of the report that `observed` is
    applied_seq: int = 0  # status_seq at which our last command had been applied
    telemetry: Telemetry | None = None
    telemetry_ns: int | None = None
    usage: dict[str, InstanceUsage] = field(default_factory=dict)

    @property
    def boot_id(self) -> bytes:
        return self.lease.boot_id

    @property
    def current(self) -> bool:
        """Leased, and what was observed is newer than the last command (DESIGN D1)."""
        return (
            self.lease.state is LeaseState.LEASED
            and self.agent_ready
            and self.observed_seq is not None
            and _not_before(self.observed_seq, self.applied_seq)
        )

    @property
    def schedulable(self) -> bool:
        return (
            self.lease.state is LeaseState.LEASED
            and self.agent_ready
            and not self.draining
            and not self.quarantine
        )

    @property
    def state(self) -> CnmState:
        if self.quarantine:
            return CnmState.QUARANTINED
        match self.lease.state:
            case LeaseState.LEASED:
                return CnmState.DRAINING if self.draining else CnmState.LEASED
            case LeaseState.SUSPECT:
                return CnmState.SUSPECT
            case LeaseState.FENCING:
                return CnmState.FENCING
            case LeaseState.FENCED:
                return CnmState.FENCED
            case _:
                on = self.power is not None and self.power.power_good
                return CnmState.BOOTING if on else CnmState.OFF

    def links_silent_ns(self, now_ns: int, since_ns: int) -> int:
        """How long neither link has brought a good packet, counted from `since_ns` at least."""
        heard = [since_ns]
        heard += [ns for ns in (self.mc.link.last_rx_ns, self.agent.link.last_rx_ns) if ns]
        return now_ns - max(heard)

    def note_applied(self, status_seq: int) -> None:
        """A command's answer: reports older than it are no longer to be relied on."""
        if _not_before(status_seq, self.applied_seq):
            self.applied_seq = status_seq

    def forget_boot(self) -> None:
        """Everything that belonged to a boot that is over."""
        self.agent_ready = False
        self.capabilities = None
        self.heartbeat = self.heartbeat_ns = None
        self.telemetry = self.telemetry_ns = None
        self.observed = {}
        self.observed_seq = None
        self.applied_seq = 0
        self.usage = {}


class Inventory:
    """All slots of the card, by CNM id; filled once from the board."""

    def __init__(self) -> None:
        self._cnms: dict[str, Cnm] = {}
        self._by_slot: dict[int, Cnm] = {}
        # False until every lease that the daemon before granted is over: see `_sight_of_boot`
        self.outwaited = True
        self.on_change: Callable[[Cnm], None] = lambda _cnm: None

    def add(self, cnm: Cnm) -> None:
        assert cnm.id not in self._cnms
        self._cnms[cnm.id] = cnm
        self._by_slot[cnm.config.slot] = cnm

    def __iter__(self) -> Iterator[Cnm]:
        return iter(self._cnms.values())

    def get(self, cnm_id: str) -> Cnm | None:
        return self._cnms.get(cnm_id)

    def by_slot(self, slot: int) -> Cnm | None:
        return self._by_slot.get(slot)

    def look(self, place: Place, instance: str) -> Seen:
        """What may be relied on about `instance` at `place`."""
        cnm = self._cnms.get(place.cnm)
        if cnm is None or cnm.boot_id != place.boot_id:
            return Seen(sight=self._sight_of_boot(place, cnm, instance))
        if cnm.lease.state is LeaseState.FENCED:
            return Seen(sight=Sight.GONE)
        if not cnm.current:
            return Seen(sight=Sight.UNSURE)
        return Seen(sight=Sight.CURRENT, status=cnm.observed.get(instance), draining=cnm.draining)

    def _sight_of_boot(self, place: Place, cnm: Cnm | None, instance: str) -> Sight:
        """Of a boot that is not where it was, in slot `cnm` (None: the board has no such slot any
        more). Another boot of the same module proves the old one dead (rule 9d). A slot that was
        renamed, or taken from the board, proves nothing: the module may go on under its new name,
        or under its lease, until that is over."""
        if cnm is not None and not cnm.boot_id:
            return Sight.UNSURE  # no boot known yet: wait
        for other in self._cnms.values():
            if other.boot_id == place.boot_id:
                ended = other.current and instance not in other.observed
                dead = other.lease.state is LeaseState.FENCED
                return Sight.GONE if ended or dead else Sight.UNSURE
        same = cnm is not None and cnm.uuid == (cnm.uuid_before or cnm.uuid)
        return Sight.GONE if same or self.outwaited else Sight.UNSURE

    def reported(self, place: Place, instance: str) -> InstanceStatus | None:
        """What the module at `place` said last, whether that can be relied on or not."""
        cnm = self._cnms.get(place.cnm)
        if cnm is None or cnm.boot_id != place.boot_id:
            return None
        return cnm.observed.get(instance)

    def left_behind(self, instance: str) -> list[Place]:
        """Where something dead or never started of `instance` still lies, as the newest reports
        say: after a move, its source."""
        places = []
        for cnm in self._cnms.values():
            status = cnm.observed.get(instance) if cnm.current else None
            if status is not None and status.state not in LIVE:
                generation = status.generation
                places.append(Place(cnm=cnm.id, boot_id=cnm.boot_id, generation=generation))
        return places


def _not_before(seq: int, other: int) -> bool:
    """Serial number comparison of 32-bit counters (RFC 1982)."""
    return (seq - other) & 0xFFFF_FFFF < 0x8000_0000
