"""The card's half of leases and fences: DESIGN section 4, rule by rule, for one CNM.

Pure: time comes in by argument, effects go out by return value. The other half is
`firmware.cnm.lease_guard`.

    NEW -- admit --> LEASED -- silence --> SUSPECT -- begin_fence --> FENCING --> FENCED
                        ^------ heartbeat ----'                          (a new boot id: NEW)
"""

from enum import Enum
from typing import Final

from firmware.board_types import Timing
from firmware.loop import MS

HEARTBEAT_WAY_MS: Final = 30  # 70 bytes at 115,200 baud, twice, and a late loop on each side


def silence_ms(timing: Timing) -> int:
    """Heartbeats that stay away for so long make a CNM SUSPECT: m rounds and a packet's way."""
    return timing.lost_rounds * timing.heartbeat_ms + HEARTBEAT_WAY_MS


class LeaseState(Enum):
    """Rule 8, and NEW: this boot was never granted anything."""

    NEW = "new"
    LEASED = "leased"
    SUSPECT = "suspect"
    FENCING = "fencing"
    FENCED = "fenced"


class FenceProof(Enum):
    """Why generation g + 1 may start elsewhere (rule 9; (a) is per instance)."""

    POWER_LOW = "power-good was read low"  # (b)
    WAITED = "the lease and the stop time have passed"  # (c)
    NEW_BOOT = "the module came back with another boot id"  # (d)


class CardLease:
    """One CNM's lease as its card keeps it."""

    def __init__(self, timing: Timing, *, power_fence: bool) -> None:
        self.timing = timing
        self.power_fence = power_fence
        self.state = LeaseState.NEW
        self.boot_id = b""
        self.proof: FenceProof | None = None
        self._heard_ns = 0  # last heartbeat of this boot
        self._granted_ns = 0  # receipt of the last heartbeat that was granted
        self._heard_again = False  # since it became SUSPECT
        self._low_since_ns: int | None = None
        self._low_asked_ns: int | None = None  # when the last reading was asked for that was low

    def restore(self, boot_id: bytes, now_ns: int) -> None:
        """Rule 11: a CNM that the journal calls granted is SUSPECT, W counts from now."""
        self._suspect()
        self.boot_id = boot_id
        self._heard_ns = self._granted_ns = now_ns

    def restore_fencing(self, boot_id: bytes, now_ns: int) -> None:
        """A fence that was journaled before the restart goes on; it can't be taken back."""
        self.restore(boot_id, now_ns)
        self.state = LeaseState.FENCING

    def restore_fenced(self, boot_id: bytes) -> None:
        """Its generations were released before the restart; it may boot or be admitted anew."""
        self.state = LeaseState.FENCED
        self.boot_id = boot_id

    def on_boot(self, boot_id: bytes, now_ns: int) -> FenceProof | None:
        """A HELLO. A boot id other than the one that was granted proves the old one dead (9d)."""
        if boot_id == self.boot_id:
            if self.state is LeaseState.FENCED:  # its instances were superseded; start afresh
                self.state = LeaseState.NEW
            return None
        had_lease = self.state not in (LeaseState.NEW, LeaseState.FENCED)
        self.boot_id = boot_id
        self.state = LeaseState.NEW
        self._heard_ns = now_ns
        self._low_since_ns = self._low_asked_ns = None
        self.proof = FenceProof.NEW_BOOT if had_lease else None
        return self.proof

    @property
    def admissible(self) -> bool:
        """It may be admitted once its inventory was read: it is new, or a SUSPECT whose
        heartbeats have come back. An agent that still answers is no sign of a lease that lives."""
        if self.state is LeaseState.SUSPECT:
            return self._heard_again
        return self.state is LeaseState.NEW

    def admit(self, boot_id: bytes, now_ns: int) -> bool:
        """Its inventory was read and "granted" is on disk: grants may start (rules 2 and 11)."""
        if boot_id != self.boot_id or not self.admissible:
            return False
        if self.state is LeaseState.NEW:
            self._granted_ns = now_ns
        self.state = LeaseState.LEASED
        self._heard_ns = now_ns
        return True

    def on_heartbeat(self, boot_id: bytes, now_ns: int) -> bool:
        """True: answer with a grant. A SUSPECT that was admitted before may return (rule 8)."""
        if boot_id != self.boot_id:
            return False
        self._heard_ns = now_ns
        self._heard_again = True
        if self.state is not LeaseState.LEASED:
            return False
        self._granted_ns = now_ns
        return True

    def suspect_if_silent(self, now_ns: int) -> bool:
        """LEASED -> SUSPECT when heartbeats stay away; True at the change."""
        if (
            self.state is LeaseState.LEASED
            and now_ns - self._heard_ns >= silence_ms(self.timing) * MS
        ):
            self._suspect()
            return True
        return False

    def suspect_now(self) -> bool:
        """Link down, power low, an event: a detection, never a fence (rule 10)."""
        if self.state is LeaseState.LEASED:
            self._suspect()
            return True
        return False

    def _suspect(self) -> None:
        self.state = LeaseState.SUSPECT
        self._heard_again = False

    def fence_is_due(self, now_ns: int, links_silent_ns: int) -> bool:
        """A SUSPECT should be fenced now: W has passed, its power is low, or it can be switched
        off and both its links were silent for suspect_ms (rule 10)."""
        if self.state is not LeaseState.SUSPECT:
            return False
        if self._low_since_ns is not None or self._waited(now_ns):
            return True
        return self.power_fence and links_silent_ns >= self.timing.suspect_ms * MS

    def begin_fence(self) -> None:
        """FENCING is on disk: irrevocable."""
        assert self.state is LeaseState.SUSPECT
        self.state = LeaseState.FENCING

    def on_power(self, power_good: bool, now_ns: int, *, asked_ns: int | None = None) -> None:
        """A change of power-good, or a reading that was asked for at `asked_ns`. Low proves
        nothing where power off is no fence: without namespaces an instance may outlive its init,
        and only the wait is left."""
        if power_good or not self.power_fence:
            self._low_since_ns = self._low_asked_ns = None
            return
        if self._low_since_ns is None:
            self._low_since_ns = now_ns
        if asked_ns is not None:
            self._low_asked_ns = asked_ns

    def fenced_if_proven(self, now_ns: int, *, trust_wait: bool = True) -> FenceProof | None:
        """FENCING -> FENCED as soon as one of rule 9 holds; the proof at the change.

        `trust_wait` False: the power is about to be cut, which also covers a guard that was
        stopped or hung with its module; the wait alone relies on that guard.
        """
        if self.state is not LeaseState.FENCING:
            return None
        if self._held_low():
            self.proof = FenceProof.POWER_LOW
        elif trust_wait and self._waited(now_ns):
            self.proof = FenceProof.WAITED
        else:
            return None
        self.state = LeaseState.FENCED
        return self.proof

    def next_ns(self, now_ns: int) -> int:
        """When time alone may change something next."""
        timing = self.timing
        if self.state is LeaseState.LEASED:
            return self._heard_ns + silence_ms(timing) * MS
        due = self._granted_ns + timing.fence_wait_ms * MS
        if self.state is LeaseState.FENCING and self._low_since_ns is not None:
            due = min(due, self._low_since_ns + timing.off_hold_ms * MS)
        return max(due, now_ns)

    def left_ms(self, now_ns: int) -> int | None:
        """What the CNM's lease has left at most, as the card knows it; None without one."""
        if self.state not in (LeaseState.LEASED, LeaseState.SUSPECT):
            return None
        return max(0, self.timing.lease_ms - (now_ns - self._granted_ns) // MS)

    def holds_low(self, now_ns: int) -> bool:
        """Asked for, it was low, and off_hold_ms is not over: there is nothing to ask now."""
        since_ns = self._low_since_ns
        if since_ns is None or self._low_asked_ns is None:
            return False
        return now_ns - since_ns < self.timing.off_hold_ms * MS

    def _held_low(self) -> bool:
        """Low for off_hold_ms, by a reading that was asked for at the end of it. That nobody has
        told of its return is not enough: a daemon that is held up hears of that too late."""
        since_ns, asked_ns = self._low_since_ns, self._low_asked_ns
        if since_ns is None or asked_ns is None:
            return False
        return asked_ns - since_ns >= self.timing.off_hold_ms * MS

    def _waited(self, now_ns: int) -> bool:
        return now_ns - self._granted_ns >= self.timing.fence_wait_ms * MS
