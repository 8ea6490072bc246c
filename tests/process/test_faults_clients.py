"""Clients that are idle by the hundred, slow, deaf, endless, senseless and strange, all at once.

The limits are those of firmware/control_socket.py and control_connection.py. Judged from outside:
an honest client is served all the time, nothing that runs is touched, and afterwards the daemon
holds no more descriptors or memory than before.
"""

import os
import socket
import time
from collections.abc import Iterator

import pytest

from tests.process import fault_clients as clients
from tests.process import fault_judge as judge
from tests.process.card_watch import CopyWatch
from tests.process.fault_kinds_room import LONG_LINE, SENSELESS
from tests.process.fault_logs import LogWatch
from tests.process.local_card import LocalCard, a_card, say
from tools.demo import observe_card
from tools.errors import ToolError

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(150),
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and other users need root"),
]

STEADY = """
services:
  loop:
    image: host
    command: ["/bin/sh", "-c", "trap 'exit 0' TERM; while true; do sleep 0.5; done"]
    cpus: 0.1
    mem_limit: 32m
    stop_grace_period: 1s
    deploy: {replicas: 4, placement: {preferences: [{spread: node.id}]}}
"""
KEPT = 64  # connections
IDLE = 1_000
DEAF_FOR_S = 45.0  # cut off after 30 s without taking anything
RSS_LIMIT_BYTES = 8 << 20


@pytest.fixture(scope="module")
def card() -> Iterator[LocalCard]:
    with a_card() as card:
        card.run_compose(STEADY, "steady")
        yield card


@pytest.fixture(autouse=True)
def untouched(card: LocalCard) -> Iterator[None]:
    status = card.managing()
    assert status is not None
    before, logs = card.first_processes(), LogWatch(card)
    name = observe_card.DAEMON
    then = judge.held(card)[name]
    with CopyWatch(card) as watch:
        yield
    card.hang_up()
    after = card.wait("managing", card.managing)
    assert after["daemon_pid"] == status["daemon_pid"]
    assert card.first_processes() == before
    assert not watch.violations, watch.violations
    card.wait("no more descriptors", lambda: judge.held(card)[name].descriptors <= then.descriptors)
    grown_bytes = judge.held(card)[name].rss_bytes - then.rss_bytes
    say(f"RSS {grown_bytes >> 10:+d} KiB, longest stall {after['longest_stall_ms']} ms")
    assert grown_bytes <= RSS_LIMIT_BYTES
    logs.look()
    assert not logs.tracebacks, logs.tracebacks


def test_a_thousand_idle_clients_are_few_that_stay_and_many_that_are_told_why_not(
    card: LocalCard,
) -> None:
    card.call("status")  # an honest client that is there before them
    crowd = clients.Crowd(card.run, IDLE)
    try:
        assert card.call("status")["ready"]
        told = card.wait("turned away", lambda: _all_told(crowd))
        assert {answer["error"]["data"]["code"] for answer in told} == {"too_many_connections"}
        assert len(told) == len(crowd.socks) - (KEPT - 1)
        refused = card.apf("ps", code=3)
        assert refused["error"]["code"] == "too_many_connections"
    finally:
        crowd.close()
    assert card.apf("ps")


def test_slow_deaf_and_senseless_clients_are_cut_off_and_the_honest_one_is_served(
    card: LocalCard,
) -> None:
    deaf = clients.DeafSubscriber(card.run)
    loris = clients.Loris(card.run)
    cut: set[str] = set()
    began_s = time.monotonic()
    round_number = 0
    try:
        while cut != {"deaf", "slow"}:
            round_number += 1
            assert time.monotonic() - began_s < DEAF_FOR_S, f"cut off so far: {cut}"
            assert card.call("status")["ready"]
            if not loris.feed():
                cut.add("slow")
            deaf.ask(100)
            if deaf.hung_up:
                cut.add("deaf")
            for data in SENSELESS if round_number % 10 == 1 else ():
                told = clients.send_until_told(card.run, data)
                assert told
                assert all("error" in answer for answer in told), told
            time.sleep(0.2)
    finally:
        deaf.close()
        loris.close()


def test_ten_megabytes_of_one_line_are_refused_in_words_whoever_sends_how_many(
    card: LocalCard,
) -> None:
    for _ in range(5):
        told = clients.send_until_told(card.run, LONG_LINE)
        assert [answer["error"]["data"]["code"] for answer in told] == ["request_too_large"]


def test_another_user_may_look_and_not_touch(card: LocalCard) -> None:
    assert clients.stranger(card.run) == "Permission denied"  # the way is closed
    with clients.open_to_all(card.run):
        assert "unauthori" in clients.stranger(card.run)  # it is open, and does not help


def test_a_client_that_dies_in_the_middle_of_its_answer_is_forgotten(card: LocalCard) -> None:
    for _ in range(200):
        sock = clients.connect(card.run)
        sock.sendall(clients.request("events.subscribe", since_seq=0) + clients.request("cnm.list"))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        sock.close()
    with pytest.raises(ToolError, match="no instance"):
        card.call("instance.logs", instance="steady/nobody/0")


def _all_told(crowd: clients.Crowd) -> list[dict[str, object]]:
    crowd.told += crowd.turned_away()
    return crowd.told if len(crowd.told) >= len(crowd.socks) - (KEPT - 1) else []
