"""The classes of both ends with one rule of DESIGN section 4 left out of each: never a switch in
what runs on a card. `without.py` says where each of them does harm.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from firmware.assignments import Assignment, Place
from firmware.board_types import Timing
from firmware.cnm.lease_guard import CardBinding, LeaseGuard, Verdict
from firmware.cnm.records import Instance
from firmware.cnm.tombstones import Tombstones
from firmware.decide import Seen, Sight
from firmware.discovery import Discovery
from firmware.inventory import Cnm, Inventory
from firmware.journal import Change, JournalError
from firmware.lease import CardLease, FenceProof, LeaseState
from firmware.loop import MS
from tools.sim.leases.card import ModelDecisions
from tools.sim.leases.cnm import EvictingTable

LATER_NS: Final = 30_000 * MS

# --- rule 1: who commands, and which generation ---


class NoBootIds(CardBinding):
    """Commands and grants meant for an earlier boot are taken."""

    def admit(self, card_uuid: bytes, epoch: int, boot_id: bytes) -> Verdict:
        return self.introduce(card_uuid, epoch)


class NoEpochs(CardBinding):
    """A daemon that is gone is still obeyed."""

    def introduce(self, card_uuid: bytes, epoch: int) -> Verdict:
        return super().introduce(card_uuid, max(epoch, self.epoch))


class NoGenerations(EvictingTable):
    """A command for a lower generation is carried out, on what is there or anew; and nothing is
    remembered of what was buried: the tombstones alone would refuse each such command."""

    def _newest_up_to(self, name: str, generation: int) -> Instance | None:
        found = self.find(name)
        return found if found is None or found.generation == generation else None

    def _refuse_dead(self, name: str, generation: int) -> None:
        pass


# --- rule 2: on disk first ---


class EpochLater(ModelDecisions):
    """The epoch is used before it is on disk: after a crash it is used again."""

    def begin_epoch(self, fresh_uuid: bytes, done: Callable[[JournalError | None], None]) -> None:
        self.epoch = self.journal.epoch + 1
        self.card_uuid = fresh_uuid
        self._loop.call_later(
            LATER_NS, lambda: self.journal.begin_epoch(fresh_uuid.hex(), lambda _error: None)
        )
        done(None)


class GenerationLater(ModelDecisions):
    """An assignment is acted on while it is on its way to the disk."""

    def assign(
        self,
        changes: Sequence[Assignment],
        done: Callable[[bool], None] | None = None,
        also: Sequence[Change] = (),
    ) -> None:
        super().assign(changes, done, also)
        for item in changes:
            self._take(item)
            self.pending.discard(item.instance)
        self._tell([item.instance for item in changes])


class GrantedLater(ModelDecisions):
    """Grants begin before "granted" is on disk."""

    def grant(self, cnm: Cnm, durable: Callable[[], None]) -> None:
        durable()


# --- rules 3 and 4: the guard ---


def from_receipt(binding: CardBinding, now_ns: Callable[[], int]) -> LeaseGuard:
    """The lease is counted from when its grant was received."""

    class FromReceipt(LeaseGuard):
        def on_grant(
            self, seq: int, lease_ms: int, card_uuid: bytes, epoch: int, boot_id: bytes
        ) -> Verdict:
            if seq in self._sent_ns:
                self._sent_ns[seq] = now_ns()
            return super().on_grant(seq, lease_ms, card_uuid, epoch, boot_id)

    return FromReceipt(binding)


class NoStopTime(Timing):
    """W without S: as if what runs were dead at the moment at which its lease ends."""

    @property
    def fence_wait_ms(self) -> int:
        return self._stretched_ms(self.lease_ms)


# --- rule 5: W ---


class NoDrift(Timing):
    """W = L + S: as if both clocks ran alike."""

    @property
    def fence_wait_ms(self) -> int:
        return self.lease_ms + self.stop_ms


class FromAdmission(CardLease):
    """W counts from when the grants began, not from the last one."""

    def on_heartbeat(self, boot_id: bytes, now_ns: int) -> bool:
        before_ns = self._granted_ns
        granted = super().on_heartbeat(boot_id, now_ns)
        self._granted_ns = before_ns
        return granted


# --- rule 8: the states ---


class GrantsToSuspects(CardLease):
    """A SUSPECT that is heard gets grants, while the fence takes its course: W is not counted from
    them (rule 5). Counted, it would wait them out, and no overlap was found."""

    def on_heartbeat(self, boot_id: bytes, now_ns: int) -> bool:
        granted = super().on_heartbeat(boot_id, now_ns)
        return granted or (boot_id == self.boot_id and self.state is LeaseState.SUSPECT)


class RevocableFence(CardLease):
    """A FENCING that is heard gets grants again: what was journaled as a fence is taken back on
    one side only, and the proof that comes is taken for one. W is not counted from these grants
    either, as for `GrantsToSuspects`."""

    def on_heartbeat(self, boot_id: bytes, now_ns: int) -> bool:
        granted = super().on_heartbeat(boot_id, now_ns)
        return granted or (boot_id == self.boot_id and self.state is LeaseState.FENCING)


# --- rule 9: the proofs ---


class NoTombstones(EvictingTable):
    """What was stopped and removed is forgotten."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self._tombstones = _Forgetful()


class _Forgetful(Tombstones):
    def bury(self, name: str, generation: int, *, epoch: int, now_ns: int) -> None:
        pass


class StopIsEnough(Inventory):
    """A SUSPECT counts as gone: nobody waits for the module's word that it has stopped."""

    def look(self, place: Place, instance: str) -> Seen:
        cnm = self.get(place.cnm)
        if cnm is not None and cnm.lease.state is LeaseState.SUSPECT:
            return Seen(sight=Sight.GONE)
        return super().look(place, instance)


class NoHold(CardLease):
    """Power that was read low once is off."""

    def _held_low(self) -> bool:
        return self._low_since_ns is not None


class NoWait(CardLease):
    """Silence is enough: nobody waits until the lease must be over."""

    def _waited(self, now_ns: int) -> bool:
        return self.state in (LeaseState.SUSPECT, LeaseState.FENCING)


class TrustsTheGuard(CardLease):
    """The wait is proof also where the power can be cut. A guard that hangs with its module stops
    nothing; only the power does (`Fencing._waits_only`)."""

    def fenced_if_proven(self, now_ns: int, *, trust_wait: bool = True) -> FenceProof | None:
        return super().fenced_if_proven(now_ns, trust_wait=True)


class AnyHello(CardLease):
    """Any HELLO of a SUSPECT, of the same boot too, counts as the word of a new boot."""

    def on_boot(self, boot_id: bytes, now_ns: int) -> FenceProof | None:
        if boot_id == self.boot_id and self.state is LeaseState.SUSPECT:
            self.state = LeaseState.FENCED
            return FenceProof.NEW_BOOT
        return super().on_boot(boot_id, now_ns)


class AsksAnew(Discovery):
    """For `AnyHello`: a SUSPECT is asked for its boot id."""

    def scan_cnms(self) -> None:
        for cnm in self._inventory:
            if cnm.lease.state is LeaseState.SUSPECT:
                self._ask(cnm, "mc", self._set_mc_eid)
        super().scan_cnms()


class SameEpochAfterFence(ModelDecisions):
    """A fence does not end the epoch: what was commanded before it may come true after it."""

    def begin_fence(self, cnm: Cnm, done: Callable[[bool], None], *, end_epoch: bool) -> None:
        super().begin_fence(cnm, done, end_epoch=False)


# --- rule 10: detections are no fences ---


class SilenceIsProof(CardLease):
    """Two links that are down are a dead module."""

    def fenced_if_proven(self, now_ns: int, *, trust_wait: bool = True) -> FenceProof | None:
        if self.state is LeaseState.FENCING and self.power_fence:
            self.state = LeaseState.FENCED
            return FenceProof.POWER_LOW
        return super().fenced_if_proven(now_ns, trust_wait=trust_wait)


# --- rule 11: the restart ---


class NoWaitAtStart(CardLease):
    """W of a module that the journal calls granted is over at the start."""

    def restore(self, boot_id: bytes, now_ns: int) -> None:
        super().restore(boot_id, now_ns)
        self._granted_ns = now_ns - self.timing.fence_wait_ms * MS


class GrantsUnread(Discovery):
    """Grants begin before the inventory was read: what is there counts as nothing."""

    def _read_status(self, cnm: Cnm) -> None:
        self._stop_asking(cnm, "admit")
        cnm.observed, cnm.observed_seq = {}, 0
        self._admit(cnm)
