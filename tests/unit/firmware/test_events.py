"""firmware.events: the ring, its readers, and the flood brake."""

from hypothesis import given
from hypothesis import strategies as st

from firmware.events import (
    EVENTS_A_TURN,
    MAX_SUBSCRIPTIONS,
    RATE_BURST,
    Event,
    EventCode,
    EventLog,
    iso_ms,
)
from tests.unit.firmware.fake_reactor import FakeReactor


def make(ring_events: int = 4096) -> tuple[FakeReactor, EventLog]:
    reactor = FakeReactor()
    return reactor, EventLog(reactor, lambda: 1_772_366_400_123_456_789, ring_events=ring_events)


def test_an_event_carries_both_clocks_and_the_interface_keys() -> None:
    _, log = make()
    log.emit(EventCode.CNM_SUSPECT, "no heartbeat for 330 ms", cnm="cnm1", data={"age_ms": 330})
    assert [e.to_json() for e in log.since(0)] == [
        {
            "seq": 1,
            "at": "2026-03-01T12:00:00.123Z",
            "mono_ms": 1000,
            "code": "cnm.suspect",
            "cnm": "cnm1",
            "instance": None,
            "text": "no heartbeat for 330 ms",
            "data": {"age_ms": 330},
        }
    ]


def test_iso_time_pads_milliseconds() -> None:
    assert iso_ms(0) == "1970-01-01T00:00:00.000Z"
    assert iso_ms(1_009_999_999) == "1970-01-01T00:00:01.009Z"


def test_a_reader_that_comes_back_late_sees_the_gap() -> None:
    _, log = make(ring_events=3)
    for n in range(10):
        log.emit(EventCode.CNM_POWER, str(n))
    found = log.since(4)
    assert [(e.seq, str(e.code)) for e in found] == [
        (7, "events.gap"),
        (8, "cnm.power"),
        (9, "cnm.power"),
        (10, "cnm.power"),
    ]
    assert found[0].data == {"first_lost_seq": 5, "last_lost_seq": 7}
    assert log.since(10) == []
    assert [e.seq for e in log.since(7)] == [8, 9, 10]


def test_a_subscriber_resumes_and_then_follows() -> None:
    _, log = make()
    for _ in range(3):
        log.emit(EventCode.CNM_POWER)
    heard: list[int] = []

    def deliver(event: Event) -> bool:
        heard.append(event.seq)
        return True

    subscription = log.subscribe(1, deliver)
    assert subscription is not None
    subscription.pump()
    log.emit(EventCode.CNM_POWER)
    assert heard == [2, 3, 4]
    subscription.close()
    log.emit(EventCode.CNM_POWER)
    assert heard == [2, 3, 4]


def test_a_full_subscriber_goes_on_where_it_was_with_the_gap_shown() -> None:
    _, log = make(ring_events=4)
    heard: list[Event] = []
    room = [True]

    def deliver(event: Event) -> bool:
        if room[0]:
            heard.append(event)
        return room[0]

    subscription = log.subscribe(None, deliver)
    assert subscription is not None
    log.emit(EventCode.CNM_POWER)
    room[0] = False
    for _ in range(6):
        log.emit(EventCode.CNM_POWER)
    room[0] = True
    subscription.pump()
    assert [(e.seq, str(e.code)) for e in heard] == [
        (1, "cnm.power"),
        (3, "events.gap"),
        *((n, "cnm.power") for n in (4, 5, 6, 7)),
    ]


def test_a_number_from_before_a_restart_starts_at_the_oldest_event() -> None:
    _, log = make()
    log.emit(EventCode.CARD_STARTED)
    heard: list[int] = []
    subscription = log.subscribe(900, lambda e: heard.append(e.seq) or True)
    assert subscription is not None
    subscription.pump()
    assert heard == [1]


def test_a_reader_that_emits_while_it_reads_gets_each_event_once() -> None:
    _, log = make()
    heard: list[int] = []

    def deliver(event: Event) -> bool:
        heard.append(event.seq)
        if event.seq < 5:
            log.emit(EventCode.RPC_REFUSED)
        return True

    assert log.subscribe(None, deliver) is not None
    log.emit(EventCode.CNM_POWER)
    assert heard == [1, 2, 3, 4, 5]


def test_a_reader_far_behind_gets_a_few_events_a_turn_and_in_the_end_all_once() -> None:
    reactor, log = make()
    for n in range(10 * EVENTS_A_TURN):
        log.emit(EventCode.CNM_POWER, str(n), cnm=str(n))
        reactor.advance(100_000_000)
    got: list[int] = []
    reader = log.subscribe(0, lambda event: got.append(event.seq) is None)
    assert reader is not None
    reader.pump()
    assert len(got) == EVENTS_A_TURN
    log.emit(EventCode.CNM_POWER, "one more")
    reader.pump()
    assert len(got) == EVENTS_A_TURN, "whoever else comes along has this turn too"
    reactor.advance(0)
    assert got == list(range(1, log.next_seq))


def test_a_reader_that_left_gets_no_more_of_what_was_put_off() -> None:
    reactor, log = make()
    for n in range(2 * EVENTS_A_TURN):
        log.emit(EventCode.CNM_POWER, str(n))
        reactor.advance(100_000_000)
    got: list[int] = []
    reader = log.subscribe(0, lambda event: got.append(event.seq) is None)
    assert reader is not None
    reader.pump()
    reader.close()
    reactor.advance(0)
    assert len(got) == EVENTS_A_TURN


def test_subscriptions_have_a_bound() -> None:
    _, log = make()
    kept = [log.subscribe(None, lambda _e: True) for _ in range(MAX_SUBSCRIPTIONS)]
    assert all(kept)
    assert log.subscribe(None, lambda _e: True) is None


def test_a_flood_of_one_code_is_cut_and_counted_and_others_pass() -> None:
    reactor, log = make()
    for _ in range(RATE_BURST + 25):
        log.emit(EventCode.LINK_DOWN)
    assert log.emit(EventCode.CNM_FENCED) is not None
    assert log.suppressed == 25
    reactor.advance(1_000_000_000)
    last = log.since(0)[-1]
    assert (last.code, last.data) == (
        EventCode.EVENTS_SUPPRESSED,
        {"code": "link.down", "count": 25},
    )
    assert log.emit(EventCode.LINK_DOWN) is not None
    reactor.advance(5_000_000_000)
    assert log.since(0)[-1].code is EventCode.LINK_DOWN  # said once


@given(
    st.integers(1, 8),
    st.lists(st.booleans(), max_size=40),
    st.integers(0, 45),
)
def test_a_reader_learns_of_every_number_once_or_hears_that_it_is_lost(
    ring: int, steps: list[bool], since: int
) -> None:
    """True emits, False lets the reader take one more event."""
    _, log = make(ring_events=ring)
    heard: list[Event] = []
    tokens = [0]

    def deliver(event: Event) -> bool:
        if tokens[0] == 0:
            return False
        tokens[0] -= 1
        heard.append(event)
        return True

    subscription = log.subscribe(0, deliver)
    assert subscription is not None
    for emit in steps:
        if emit:
            log.emit(EventCode.CNM_POWER)
        else:
            tokens[0] += 1
            subscription.pump()
    tokens[0] = 10**6
    subscription.pump()
    known: list[int] = []
    for event in heard:
        if event.code is EventCode.EVENTS_GAP:
            first = event.data["first_lost_seq"]
            assert isinstance(first, int)
            known.extend(range(first, event.seq + 1))
        else:
            known.append(event.seq)
    assert known == list(range(1, sum(steps) + 1))
    assert all(e.seq > since or e.code is EventCode.EVENTS_GAP for e in log.since(since))
