"""DESIGN section 4 by brute force: with all rules no overlap, and without any one of them one."""

import random

import pytest

from firmware import lease
from tools.errors import BadUsage
from tools.output import Output
from tools.sim.leases import WITHOUT, prove, run_once
from tools.sim.leases.clockwork import Host, Kernel, Oscillator
from tools.sim.leases.command import prove_leases
from tools.sim.leases.without import RUNS, Without

SEEDS = 1_200  # `apf sim --lease-proof 1000000` is the long run
CONTROL = 40


def test_no_two_generations_ever_live_at_once() -> None:
    proof = prove(SEEDS)
    assert not proof.violations, proof.violations
    assert proof.runs == SEEDS
    assert proof.failovers > SEEDS, "next to nothing was started elsewhere: nothing was proved"


@pytest.mark.parametrize("without", WITHOUT.values(), ids=list(WITHOUT))
def test_without_one_rule_two_generations_live_at_once(without: Without) -> None:
    found = prove(RUNS, rules=without.rules, focus=without.focus, stop_at=1)
    assert found.violations, f"{RUNS} runs in which {without.text} went well"
    seed, overlap = found.violations[0]
    control = run_once(seed, focus=without.focus)
    assert not control.overlaps, f"seed {seed} breaks with all rules too: {control.overlaps[0]}"
    assert not prove(CONTROL, focus=without.focus).violations
    assert run_once(seed, without.rules, without.focus).overlaps[0] == overlap, "not repeatable"


def test_every_rule_against_overlap_is_left_out_once() -> None:
    numbers = {name.split()[0].rstrip("abcd") for name in WITHOUT}
    assert numbers == {"1", "2", "3", "4", "5", "8", "9", "10", "11"}
    assert {name[1] for name in WITHOUT if name.startswith("9") and name[1] != " "} == set("abcd")


def test_a_seed_repeats_itself_event_by_event() -> None:
    first, again = run_once(77), run_once(77)
    assert (first.kernel.events, first.kernel.now) == (again.kernel.events, again.kernel.now)
    assert first.failovers == again.failovers


def test_what_comes_over_one_socket_stays_in_order_however_often_its_reader_is_frozen() -> None:
    kernel = Kernel(random.Random(1))
    host = Host(kernel, Oscillator(kernel, 0, 0))
    heard: list[int] = []
    host.freeze(10)
    host.run(lambda: heard.append(1), in_order=True)  # is to come at 10
    host.freeze(20)
    host.run(lambda: heard.append(2), in_order=True)
    kernel.at(20, lambda: host.run(lambda: heard.append(3), in_order=True))
    kernel.run(30)
    assert heard == [1, 2, 3]


def test_compiled_firmware_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "__file__", "lease.cpython-311.so")
    with pytest.raises(BadUsage, match="does not allow: run it without the compiled modules"):
        prove_leases(Output(as_json=True), 1, 1, 1, lambda _runs, _violations: None)
