"""What a module reports that this version does not know, or that can't be: shown, and survived."""

import pytest

from protocol.apf import InstanceState, InstanceStatus, Kind, StatusChanged, Telemetry, encode
from tests.fuzz.targets.card import BOOT, Bench


@pytest.fixture
def bench() -> Bench:
    """A card with one leased module and three instances that run."""
    made = Bench()
    for round_ in range(12):
        if round_ == 5:
            made.submit()
        for _ in range(8):
            made.answer()
        made.beat()
        made.loop.advance(100)
    assert {row["phase"] for row in made.card.views.instances(None)} == {"RUNNING"}
    return made


def test_a_state_of_a_later_version_is_shown_and_not_stumbled_over(bench: Bench) -> None:
    """States are append-only: a newer module may well be in one that we have no name for."""
    generation = bench.staged["shop/web/0"].generation
    bench.staged["shop/web/0"] = InstanceStatus(
        instance="shop/web/0", generation=generation, state=200, health=99, exit_reason=77
    )
    notice = encode(StatusChanged(boot_id=BOOT, status_seq=9), kind=Kind.NOTICE, message_id=1)
    bench.tell("agent", notice)
    bench.answer()
    rows = {row["instance"]: row["phase"] for row in bench.card.views.instances(None)}
    assert rows["shop/web/0"] == "STAGING"
    assert rows["shop/web/1"] == "RUNNING"
    [shown] = [
        row
        for row in bench.card.views.cnm_detail(bench.cnm)["instances"]
        if row["instance"] == "shop/web/0"
    ]
    assert shown["state"] == "200"
    bench.look()


def test_all_states_that_there_are_have_a_phase(bench: Bench) -> None:
    for state in InstanceState:
        generation = bench.staged["shop/web/0"].generation
        bench.staged["shop/web/0"] = InstanceStatus(
            instance="shop/web/0", generation=generation, state=state
        )
        bench.tell(
            "agent",
            encode(StatusChanged(boot_id=BOOT, status_seq=9), kind=Kind.NOTICE, message_id=1),
        )
        bench.answer()
        bench.look()


def test_a_module_that_claims_to_use_more_than_it_has_is_full_and_no_more(bench: Bench) -> None:
    report = Telemetry.of(boot_id=BOOT, seq=900, cpu_milli=0xFFFF_FFFF, memory_bytes=1 << 60)
    bench.tell("mc", encode(report, kind=Kind.NOTICE, message_id=2))
    node = bench.card.placer.state.nodes[bench.cnm.id]
    assert node.view.load_cpu_milli == node.total[0]
    assert node.view.load_memory_bytes == node.total[1]
