"""A tty of a control link is hung up under its users (vhangup(2)): they open it again.

The keeper holds both ends of every pty: its death would be the whole card's power loss (DESIGN
D12), so one line that is hung up may cost that line a moment, and nothing else.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hal.errors import LinkDown
from hal.linux.serial import SerialLine
from hal.local.miniloop import MiniLoop
from hal.local.relay import Relay
from tests.process.card_watch import CopyWatch
from tests.process.fault_tty import hang_up
from tests.process.local_card import LocalCard, a_card

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(90),
    pytest.mark.skipif(os.geteuid() != 0, reason="vhangup(2) needs root"),
]

MS = 1_000_000
BAUD = 921600
STEADY = """
services:
  loop:
    image: host
    command: ["/bin/sh", "-c", "while true; do sleep 1; done"]
    cpus: 0.1
    mem_limit: 32m
    stop_grace_period: 0.2s
    deploy:
      replicas: 4
      placement: {preferences: [{spread: node.id}]}
"""


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[tuple[MiniLoop, Relay]]:
    loop = MiniLoop()
    made = Relay(loop, tmp_path / "tty" / "cnm0-mc", BAUD)
    made.power(True)
    yield loop, made
    made.close()
    loop.close()


@pytest.mark.parametrize("users", [0, 1, 2], ids=["nobody", "one end", "both ends"])
def test_a_line_that_was_hung_up_passes_bytes_again_to_whoever_opens_it(
    relay: tuple[MiniLoop, Relay], users: int
) -> None:
    """With nobody at the slave the kernel gives EIO at the master; with somebody it does not."""
    loop, line = relay
    ends = [line.card, line.cnm]
    before = [SerialLine(str(end.link), baud=BAUD) for end in ends[:users]]
    for end in ends:
        hang_up(end.link)
        loop.turn(5 * MS)
    line.power(False)  # flushes
    line.power(True)
    for user in before:
        with pytest.raises(LinkDown):
            user.read()
        user.close()
        loop.turn(5 * MS)
    card, cnm = (SerialLine(str(end.link), baud=BAUD) for end in ends)
    got = b""
    card.write(b"\x00\r\n\x03 raw")  # bytes that a line that is not raw would change
    for _ in range(20):
        loop.turn(5 * MS)
        got += cnm.read()
    assert got == b"\x00\r\n\x03 raw"
    assert card.read() == b""  # and no echo
    card.close()
    cnm.close()


@pytest.fixture(scope="module")
def card() -> Iterator[LocalCard]:
    with a_card() as card:
        card.run_compose(STEADY, "steady")
        yield card


def test_every_line_of_the_card_hung_up_and_nothing_that_runs_is_touched(card: LocalCard) -> None:
    before, status = card.first_processes(), card.managing()
    assert status is not None
    boots = {cnm["id"]: cnm["boot_id"] for cnm in card.cnms().values()}
    lines = sorted((card.run / "tty").iterdir())
    assert len(lines) == 16  # four modules, two links, two ends
    with CopyWatch(card) as watch:
        for line in lines:
            hang_up(line)
        card.wait("all leased", card.managing)
        for cnm in boots:
            card.wait(
                f"{cnm}'s links carry something",
                lambda cnm=cnm: all(link["silent_ms"] < 500 for link in card.cnms()[cnm]["links"]),
            )
    after = card.managing()
    assert after is not None
    assert (after["keeper_pid"], after["daemon_pid"]) == (
        status["keeper_pid"],
        status["daemon_pid"],
    )
    assert {cnm["id"]: cnm["boot_id"] for cnm in card.cnms().values()} == boots
    assert card.first_processes() == before
    assert not watch.violations, watch.violations


def test_a_module_whose_lines_were_hung_up_can_be_switched_off_and_on(card: LocalCard) -> None:
    """A power edge flushes the lines: on a descriptor that was hung up that is EIO."""
    status, victim = card.managing(), "cnm3"
    assert status is not None
    for end in ("mc", "mc.cnm", "agent", "agent.cnm"):
        hang_up(card.run / "tty" / f"{victim}-{end}")
    card.apf("cnm", "power", "off", "3")
    card.apf("cnm", "power", "on", "3")
    card.wait("leased again", lambda: card.cnms()[victim]["state"] == "LEASED")
    after = card.managing()
    assert after is not None
    assert after["keeper_pid"] == status["keeper_pid"]
    card.wait_running()
