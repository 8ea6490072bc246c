"""The CNM's side of DESIGN section 4, rules 1, 3 and 4: each rule a test."""

from hypothesis import given
from hypothesis import strategies as st

from firmware.cnm.lease_guard import CardBinding, LeaseGuard, Verdict
from firmware.loop import MS
from protocol.apf import LEASE_MAX_MS

BOOT = b"B" * 16
CARD = b"C" * 16
OTHER = b"D" * 16


def make_guard(**kwargs: int) -> LeaseGuard:
    return LeaseGuard(CardBinding(BOOT), **kwargs)


def grant(guard: LeaseGuard, seq: int, lease_ms: int = 5000, **other: object) -> Verdict:
    fields = {"card_uuid": CARD, "epoch": 1, "boot_id": BOOT} | other
    return guard.on_grant(seq, lease_ms, **fields)  # type: ignore[arg-type]


def test_rule_3_expiry_counts_from_the_sending_of_the_heartbeat_and_not_from_the_receipt() -> None:
    guard = make_guard()
    guard.on_heartbeat_sent(7, 100 * MS)
    assert grant(guard, 7) is Verdict.OK  # whenever it comes in: the guard has no receipt time
    assert guard.expires_at_ns == 5100 * MS


def test_rule_3_a_later_grant_of_an_older_heartbeat_never_shortens_the_lease() -> None:
    guard = make_guard()
    guard.on_heartbeat_sent(1, 0)
    guard.on_heartbeat_sent(2, 100 * MS)
    assert grant(guard, 1) is Verdict.OK
    assert grant(guard, 2, lease_ms=10) is Verdict.OK
    assert guard.expires_at_ns == 5000 * MS


def test_rule_3_a_grant_of_an_unknown_heartbeat_is_ignored_and_counted() -> None:
    guard = make_guard()
    assert grant(guard, 9) is Verdict.UNKNOWN_SEQ
    assert guard.expires_at_ns is None
    assert guard.counters["grant_unknown_seq"] == 1
    assert guard.binding.epoch == 0  # it did not even bind


def test_rule_3_a_heartbeat_is_granted_once_and_older_ones_no_more() -> None:
    guard = make_guard()
    for seq in (1, 2):
        guard.on_heartbeat_sent(seq, seq * MS)
    assert grant(guard, 2) is Verdict.OK
    assert grant(guard, 2) is Verdict.UNKNOWN_SEQ
    assert grant(guard, 1, lease_ms=9000) is Verdict.UNKNOWN_SEQ
    assert guard.expires_at_ns == 5002 * MS


def test_the_table_of_outstanding_heartbeats_is_bounded_and_drops_the_oldest() -> None:
    guard = make_guard(max_outstanding=3)
    for seq in range(5):
        guard.on_heartbeat_sent(seq, seq * MS)
    assert grant(guard, 1) is Verdict.UNKNOWN_SEQ
    assert grant(guard, 2) is Verdict.OK
    assert guard.counters["outstanding_dropped"] == 2


def test_rule_1_the_first_card_that_is_heard_binds_and_another_is_refused() -> None:
    guard = make_guard()
    guard.on_heartbeat_sent(1, 0)
    assert grant(guard, 1) is Verdict.OK
    guard.on_heartbeat_sent(2, 100 * MS)
    assert grant(guard, 2, card_uuid=OTHER) is Verdict.FOREIGN_CARD
    assert guard.expires_at_ns == 5000 * MS
    assert guard.binding.card_uuid == CARD


def test_rule_1_a_hello_binds_too_but_never_the_zero_uuid() -> None:
    binding = CardBinding(BOOT)
    assert binding.introduce(bytes(16), 1) is Verdict.FOREIGN_CARD
    assert binding.introduce(CARD, 3) is Verdict.OK
    assert binding.introduce(OTHER, 9) is Verdict.FOREIGN_CARD
    assert (binding.card_uuid, binding.epoch) == (CARD, 3)


def test_rule_1_a_lower_epoch_is_refused_and_a_higher_one_remembered() -> None:
    guard = make_guard()
    for seq, epoch, verdict in (
        (1, 5, Verdict.OK),
        (2, 4, Verdict.STALE_EPOCH),
        (3, 6, Verdict.OK),
        (4, 5, Verdict.STALE_EPOCH),
    ):
        guard.on_heartbeat_sent(seq, seq * MS)
        assert grant(guard, seq, epoch=epoch) is verdict
    assert guard.binding.epoch == 6
    assert guard.expires_at_ns == 5003 * MS


def test_rule_1_a_grant_for_another_boot_neither_extends_nor_binds() -> None:
    guard = make_guard()
    guard.on_heartbeat_sent(1, 0)
    assert grant(guard, 1, boot_id=b"X" * 16) is Verdict.FOREIGN_BOOT
    assert guard.expires_at_ns is None
    assert guard.binding.card_uuid == bytes(16)


def test_a_lease_out_of_bounds_is_refused() -> None:
    guard = make_guard()
    guard.on_heartbeat_sent(1, 0)
    assert grant(guard, 1, lease_ms=0) is Verdict.BAD_LEASE
    assert grant(guard, 1, lease_ms=LEASE_MAX_MS + 1) is Verdict.BAD_LEASE
    assert grant(guard, 1, lease_ms=LEASE_MAX_MS) is Verdict.OK


def test_rule_4_the_lease_is_over_at_its_expiry_and_fresh_one_nanosecond_before() -> None:
    guard = make_guard()
    assert not guard.fresh(0)
    assert not guard.expired(1 << 60)  # never had one
    guard.on_heartbeat_sent(1, 0)
    grant(guard, 1)
    assert guard.fresh(5000 * MS - 1)
    assert not guard.fresh(5000 * MS)
    assert guard.expired(5000 * MS)
    assert guard.left_ms(5000 * MS - 1) == 0
    assert guard.left_ms(1) == 4999


def test_after_its_end_a_new_grant_makes_a_new_lease() -> None:
    guard = make_guard()
    guard.on_heartbeat_sent(1, 0)
    grant(guard, 1)
    guard.on_heartbeat_sent(2, 6000 * MS)
    assert guard.expired(6000 * MS)
    assert grant(guard, 2) is Verdict.OK
    assert guard.fresh(6001 * MS)


STEP = st.tuples(
    st.integers(0, 300),  # ms until it happens
    st.integers(0, 400),  # ms that the grant is late; above 300 it is lost
    st.integers(1, 1000),  # lease_ms
)


@given(st.lists(STEP, max_size=40))
def test_whatever_is_late_or_lost_the_expiry_is_within_the_newest_granted_lease(
    steps: list[tuple[int, int, int]],
) -> None:
    """The safety of W (rule 5): no expiry beyond s + L of some heartbeat that was granted."""
    guard = make_guard()
    now_ms, arrivals, bound_ns = 0, [], 0
    for seq, (wait_ms, late_ms, lease_ms) in enumerate(steps):
        now_ms += wait_ms
        guard.on_heartbeat_sent(seq, now_ms * MS)
        if late_ms <= 300:
            arrivals.append((now_ms + late_ms, seq, now_ms, lease_ms))
    for _at_ms, seq, sent_ms, lease_ms in sorted(arrivals):
        if grant(guard, seq, lease_ms) is Verdict.OK:
            bound_ns = max(bound_ns, (sent_ms + lease_ms) * MS)
    assert (guard.expires_at_ns or 0) == bound_ns
