"""firmware.restarts: pauses that grow for a crash loop, and only for one."""

from firmware.loop import MS
from firmware.restarts import FIRST_NS, MOST_NS, STABLE_NS, Restarts

WEB = "shop/web/0"


def test_each_quick_end_doubles_the_pause_up_to_a_bound() -> None:
    restarts = Restarts()
    pauses = [restarts.pause_ns(WEB, 1 + count, count, 0) for count in range(14)]
    assert pauses[:4] == [FIRST_NS, 2 * FIRST_NS, 4 * FIRST_NS, 8 * FIRST_NS]
    assert pauses[-1] == MOST_NS


def test_asked_again_it_keeps_to_its_pause() -> None:
    restarts = Restarts()
    assert restarts.pause_ns(WEB, 1, 0, 500) == FIRST_NS
    assert restarts.pause_ns(WEB, 1, 0, 900) is None
    assert restarts.due_ns(WEB) == 500 + FIRST_NS


def test_what_ran_for_a_while_begins_with_the_first_pause_again() -> None:
    restarts = Restarts()
    restarts.running(WEB, 8, 0)
    restarts.running(WEB, 8, 5_000 * MS)  # seen again: since the first time
    assert restarts.pause_ns(WEB, 8, 7, STABLE_NS) == FIRST_NS
    assert restarts.pause_ns(WEB, 9, 8, STABLE_NS) == 2 * FIRST_NS  # and the next end was quick
    restarts.running(WEB, 10, STABLE_NS)
    assert restarts.pause_ns(WEB, 10, 9, 2 * STABLE_NS - 1) == 4 * FIRST_NS


def test_a_forgotten_instance_is_a_new_one() -> None:
    restarts = Restarts()
    restarts.running(WEB, 8, 0)
    restarts.pause_ns(WEB, 8, 7, STABLE_NS)
    restarts.forget(WEB)
    assert restarts.pause_ns(WEB, 1, 0, 0) == FIRST_NS
