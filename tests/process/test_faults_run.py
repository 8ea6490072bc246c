"""At least 200 random faults on a real card that has work to do; then it converges.

Everything that can break on one machine breaks, one over the other (tests/process/fault_kinds.py),
while workloads come, move and go; /proc is watched from outside all the time. Judged: never two
copies; after the last fault was healed all that is wanted runs, once, and `apf ps --json` is what
really runs; after `rm` nothing is left, and nobody holds more than before.

    APF_TEST_SEED=N   draws the same faults again
    APF_TEST_FAULTS=N as many faults
"""

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.process import fault_judge as judge
from tests.process import fault_traffic as traffic
from tests.process.card_watch import CopyWatch
from tests.process.fault_disk import SmallDisks, small_disks
from tests.process.fault_runtime import FlakyRuntime
from tests.process.fault_site import Site
from tests.process.fault_storm import Storm
from tests.process.local_card import BUSYBOX, LocalCard, say
from tools.errors import ToolError

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(400),
    pytest.mark.skipif(os.geteuid() != 0, reason="containers, mounts and namespaces need root"),
    pytest.mark.skipif(not BUSYBOX, reason="busybox-static is not installed"),
    pytest.mark.skipif(shutil.which("runc") is None, reason="runc is not installed"),
]

SEED = int(os.environ.get("APF_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
FAULTS = int(os.environ.get("APF_TEST_FAULTS", "200"))
GAP_S = (0.02, 0.5)
FAULT_LIMIT_S = 1.5  # for each, on average
EVENTS_SHOWN = 120
CONVERGED_S = 60.0
GONE_S = 15.0
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Ground:
    """A card on disks and a runtime that can be made to fail, and what it held while idle."""

    card: LocalCard
    disks: SmallDisks
    runtime: FlakyRuntime
    idle: dict[str, judge.Held]


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    card = LocalCard()
    runtime = FlakyRuntime(card.place)
    card.env = {**card.env, "PATH": f"{runtime.bin}:{card.env['PATH']}"}
    with small_disks(card, card_bytes=24 * MIB, modules_bytes=96 * MIB) as disks:
        try:
            card.up()
            card.wait_leased()
            card.import_busybox()
            card.hang_up()
            card.wait("whole", lambda: not judge.not_whole(card))
            yield Ground(card=card, disks=disks, runtime=runtime, idle=judge.held(card))
        finally:
            disks.card.free()
            disks.modules.free()
            card.close()


def test_hundreds_of_random_faults_and_it_converges(ground: Ground) -> None:
    say(f"\nseed {SEED} (APF_TEST_SEED)")
    card, rng = ground.card, random.Random(SEED)
    card.submit(traffic.STEADY, traffic.STEADY_NAME)
    card.wait("all of it runs", lambda: judge.settled(card, traffic.STEADY_INSTANCES), 60)
    storm = Storm(Site(card, rng, ground.disks, ground.runtime), rng)
    with CopyWatch(card) as watch:
        with traffic.Traffic(card, rng.randrange(1 << 32)) as tenants:
            try:
                storm.blow(FAULTS, GAP_S, FAULTS * FAULT_LIMIT_S)
            finally:
                storm.calm()
        healed_s = time.monotonic()
        try:
            _converge(card)
        except AssertionError as exc:
            raise AssertionError(f"seed {SEED}\n{exc}\n{storm.report()}") from exc
        converged_s = time.monotonic() - healed_s
    assert tenants.error is None, tenants.error
    assert not watch.violations, f"seed {SEED}\n{watch.violations}\n{storm.report()}"
    storm.logs.look()
    assert not storm.logs.tracebacks, f"seed {SEED}\n" + "\n".join(storm.logs.tracebacks)
    different = judge.differences(card)
    assert not different, f"seed {SEED}\n{different}\n{storm.report()}"
    assert storm.total >= FAULTS
    assert watch.seen >= traffic.STEADY_INSTANCES
    _judge_volume(card)
    say(storm.report())
    say(f"without effect: {dict(storm.without_effect)}")
    say(f"nothing to break: {dict(storm.nothing_to_break)}")
    say(f"tenants: {dict(tenants.done)}; refused: {dict(tenants.refused)}")
    say(f"{watch.samples} looks at /proc; converged {converged_s:.1f} s after the last was healed")


def test_nothing_is_left_of_it_after_rm_and_nobody_holds_more_than_before(ground: Ground) -> None:
    card = ground.card
    card.remove()
    left = _last(lambda: judge.left_behind(card))
    assert not left, f"seed {SEED}: {left}"
    card.hang_up()
    more = _last(lambda: judge.more_than_before(card, ground.idle))
    assert not more, f"seed {SEED}: {more}"
    for name, now in judge.held(card).items():
        grown_bytes = now.rss_bytes - ground.idle[name].rss_bytes
        say(f"{name}: {sum(now.descriptors.values())} descriptors, RSS {grown_bytes >> 10:+d} KiB")


def _last(found: Callable[[], list[str]], patience_s: float = GONE_S) -> list[str]:
    """What is still found when there was time for it to go."""
    deadline_s = time.monotonic() + patience_s
    while (words := found()) and time.monotonic() < deadline_s:
        time.sleep(0.25)
    return words


def _converge(card: LocalCard) -> None:
    """Every process of the stack once, every module leased, all that is wanted runs."""
    card.apf("up", "--board", card.board)  # as whoever is called would: it may be down
    missing = _last(lambda: judge.not_whole(card), CONVERGED_S)
    assert not missing, "\n".join([*missing, _what_it_says(card), card.log_tail()])
    status = card.wait("all modules leased", card.managing, CONVERGED_S)
    if status["safe_mode"]:  # too many deaths at its start; its words say what ends it
        say("safe mode: down and up again")
        card.hang_up()
        card.apf("down")
        card.apf("up", "--board", card.board)
        status = card.wait("all modules leased", card.managing, CONVERGED_S)
    assert status["journal"]["failed"] is None
    traffic.settle(card, CONVERGED_S)
    card.wait("all of it runs", lambda: judge.settled(card, traffic.STEADY_INSTANCES), CONVERGED_S)


def _what_it_says(card: LocalCard) -> str:
    """Status, modules and last events in the daemon's own words, for a failure's message."""
    card.hang_up()
    try:
        found = [card.status(), *card.cnms().values(), *card.events()[-EVENTS_SHOWN:]]
    except ToolError as exc:
        return str(exc)
    return "\n".join(json.dumps(item) for item in found)


def _judge_volume(card: LocalCard) -> None:
    """Numbers that follow each other: what came home was whole, whenever it did."""
    row: dict[str, Any] = card.ps()[traffic.DB]
    lines = Path(f"/proc/{row['pid']}/root/data/log").read_text().split("\n")
    assert lines.pop() == ""
    assert lines == [str(1_000_001 + number) for number in range(len(lines))]
