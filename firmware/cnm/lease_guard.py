"""The lease of one CNM, as pure rules: time comes in by argument. DESIGN section 4, rules 1, 3, 4.

A heartbeat's grant counts from the moment *before* that heartbeat was handed to the link, so every
delay on the way (queues, retries, a late grant) shortens the lease and never lengthens it.
"""

from collections import Counter, OrderedDict
from enum import Enum
from typing import Final

from firmware.loop import MS
from protocol.apf import LEASE_MAX_MS

MAX_OUTSTANDING: Final = 256  # heartbeats that a grant may still name: 25 s at 10 Hz, 5 leases
NO_CARD: Final = bytes(16)


class Verdict(Enum):
    """What became of a grant or a command's context."""

    OK = "ok"
    FOREIGN_CARD = "foreign_card"
    FOREIGN_BOOT = "foreign_boot"
    STALE_EPOCH = "stale_epoch"
    UNKNOWN_SEQ = "unknown_seq"  # never sent, answered already, or too old to be in the table
    BAD_LEASE = "bad_lease"


class CardBinding:
    """The one card that this boot of the CNM obeys, and the newest epoch that it was heard with.

    Rule 1: the first card uuid heard after a boot binds; a foreign card or boot id and a lower
    epoch are refused and change nothing; a higher epoch is remembered.
    """

    def __init__(self, boot_id: bytes) -> None:
        self.boot_id = boot_id
        self.card_uuid = NO_CARD
        self.epoch = 0

    def introduce(self, card_uuid: bytes, epoch: int) -> Verdict:
        """A hello: it can't know the boot id yet, all else is as for a command."""
        if card_uuid == NO_CARD or (self.card_uuid not in (NO_CARD, card_uuid)):
            return Verdict.FOREIGN_CARD
        if epoch < self.epoch:
            return Verdict.STALE_EPOCH
        self.card_uuid, self.epoch = card_uuid, epoch
        return Verdict.OK

    def admit(self, card_uuid: bytes, epoch: int, boot_id: bytes) -> Verdict:
        """The context of a command or grant; the boot id is looked at first, because a frame
        meant for an earlier boot must not bind this one."""
        if boot_id != self.boot_id:
            return Verdict.FOREIGN_BOOT
        return self.introduce(card_uuid, epoch)


class LeaseGuard:
    """Knows until when this CNM may run instances. Whoever owns the timer asks `expires_at_ns`."""

    def __init__(self, binding: CardBinding, *, max_outstanding: int = MAX_OUTSTANDING) -> None:
        self.binding = binding
        self.counters: Counter[str] = Counter()
        self._max_outstanding = max_outstanding
        self._sent_ns: OrderedDict[int, int] = OrderedDict()  # seq -> s; oldest dropped when full
        self._expires_at_ns: int | None = None

    @property
    def expires_at_ns(self) -> int | None:
        """None until the first grant of this boot."""
        return self._expires_at_ns

    def on_heartbeat_sent(self, seq: int, s_ns: int) -> None:
        """`s_ns` is read before the heartbeat is handed over (rule 3)."""
        self._sent_ns[seq] = s_ns
        self._sent_ns.move_to_end(seq)
        while len(self._sent_ns) > self._max_outstanding:
            self._sent_ns.popitem(last=False)
            self.counters["outstanding_dropped"] += 1

    def on_grant(
        self, seq: int, lease_ms: int, card_uuid: bytes, epoch: int, boot_id: bytes
    ) -> Verdict:
        """expiry = max(expiry, s + L). A refused grant changes nothing but its counter."""
        verdict = self._judge(seq, lease_ms, card_uuid, epoch, boot_id)
        if verdict is not Verdict.OK:
            self.counters[f"grant_{verdict.value}"] += 1
        else:
            self.counters["grant_ok"] += 1
            until_ns = self._sent_ns[seq] + lease_ms * MS
            self._expires_at_ns = max(self._expires_at_ns or 0, until_ns)
            self._forget_up_to(seq)
        return verdict

    def _judge(
        self, seq: int, lease_ms: int, card_uuid: bytes, epoch: int, boot_id: bytes
    ) -> Verdict:
        if boot_id != self.binding.boot_id:
            return Verdict.FOREIGN_BOOT
        if seq not in self._sent_ns:
            return Verdict.UNKNOWN_SEQ
        if not 0 < lease_ms <= LEASE_MAX_MS:
            return Verdict.BAD_LEASE
        return self.binding.admit(card_uuid, epoch, boot_id)

    def _forget_up_to(self, seq: int) -> None:
        """Heartbeats sent before the granted one can no longer extend anything."""
        while self._sent_ns:
            oldest, _ = self._sent_ns.popitem(last=False)
            if oldest == seq:
                return

    def fresh(self, now_ns: int) -> bool:
        """May instances run now? At the very moment of expiry they may not."""
        return self._expires_at_ns is not None and now_ns < self._expires_at_ns

    def expired(self, now_ns: int) -> bool:
        """A lease was held and has ended. Never true before the first grant."""
        return self._expires_at_ns is not None and now_ns >= self._expires_at_ns

    def left_ms(self, now_ns: int) -> int:
        """Rounded down: what is said is never more than what is left."""
        if self._expires_at_ns is None:
            return 0
        return max(0, self._expires_at_ns - now_ns) // MS
