"""What `apf sim` says: the envelope, the tables, the line that replays a violation."""

import hashlib
import json
import shlex

import pytest

from tools.cli import cli
from tools.output import Output
from tools.sim.faults import Fault
from tools.sim.plan import Plan
from tools.sim.report import Asked, Report
from tools.sim.run import Found, Outcome, plan_of
from tools.sim.shrink import Shrunk

FAULTS = [
    Fault(id="L1", text="a", inject=lambda _site: None),
    Fault(id="C1", text="b", inject=lambda _site: None),
    Fault(id="S1", text="c", inject=lambda _site: None),
    Fault(id="B1", text="d", inject=None, not_modelled="not modelled: no SMBus"),
]
ASKED = Asked(board="mock_4", hours=0.25, heartbeat_hz=1.0, words="L,C,S,B1", faults=FAULTS)
BROKEN = Found(invariant="two copies run", at_s=12.5, text="a/b/0 twice\nthere", detail="trace")


def outcome(seed: int, **changes: object) -> Outcome:
    found = Outcome(
        seed=seed,
        simulated_s=900.0,
        cpu_s=0.5,
        events=10,
        faults={"L1": 2},
        injected={"L1": 3},
        pairs={("C", "L")},
        trace_sha256=f"{seed:064x}",
    )
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def report_of(*outcomes: Outcome) -> Report:
    report = Report(ASKED)
    for one in outcomes:
        report.add(one)
    return report


def plan() -> Plan:
    return plan_of(3, board="mock_4", hours=0.25, heartbeat_hz=1.0, faults="all")


def test_the_envelope_has_what_scripts_rely_on() -> None:
    data = report_of(outcome(1), outcome(2, violation=BROKEN, faults={"L1": 1, "C1": 4})).to_json()
    assert data["seeds"] == 2
    assert data["simulated_s"] == 1800.0
    assert data["cpu_s"] == 1.0
    assert data["speed_ratio"] == 1800.0
    assert data["events"] == 20
    assert data["faults"] == {"L1": 3, "C1": 4, "S1": 0}
    assert data["injected"] == {"L1": 6, "C1": 0, "S1": 0}
    assert data["pairs"] == {"C+L": 2, "C+S": 0, "L+S": 0}
    assert data["pairs_missing"] == ["C+S", "L+S"]
    assert data["not_modelled"] == {"B1": "not modelled: no SMBus"}
    (violation,) = data["violations"]
    assert violation["seed"] == 2
    assert violation["invariant"] == "two copies run"
    assert violation["at_s"] == 12.5
    assert violation["text"] == "a/b/0 twice\nthere"
    assert violation["shrunk"] is None
    json.dumps(data)


def test_the_hash_is_over_the_seeds_in_their_order_however_they_came() -> None:
    wanted = hashlib.sha256(f"{1:064x}{2:064x}{3:064x}".encode()).hexdigest()
    assert report_of(outcome(3), outcome(1), outcome(2)).trace_sha256 == wanted


def test_a_violation_is_replayed_by_one_line_with_all_that_was_asked(capsys) -> None:
    line = ASKED.replay(7)
    assert line == (
        "apf sim --board mock_4 --replay 7 --hours 0.25 --heartbeat-hz 1 --faults L,C,S,B1"
    )
    with pytest.raises(SystemExit) as info:
        cli.main([*shlex.split(line.replace("0.25", "0.005"))[1:], "--json"])
    assert info.value.code == 0
    assert json.loads(capsys.readouterr().out)["data"]["seeds"] == 1


def test_a_shrunk_schedule_is_listed_with_the_line_that_runs_it() -> None:
    report = report_of(outcome(3, violation=BROKEN))
    steps = plan().steps
    report.shrunk[3] = plan(), Shrunk(numbers=(2, 5), runs=9, whole=True)
    (violation,) = report.to_json()["violations"]
    shrunk = violation["shrunk"]
    assert [step["number"] for step in shrunk["steps"]] == [2, 5]
    assert [step["what"] for step in shrunk["steps"]] == [steps[2].what, steps[5].what]
    assert shrunk["of"] == len(steps)
    assert shrunk["replay"].endswith(" --steps 2,5")
    report.shrunk[3] = plan(), Shrunk(numbers=(), runs=1, whole=True)
    assert report.to_json()["violations"][0]["shrunk"]["replay"].endswith(" --steps none")


def test_people_see_what_acted_what_is_missing_and_what_is_not_modelled(capsys) -> None:
    report = report_of(outcome(1), outcome(2, violation=BROKEN))
    report.show(Output(as_json=False))
    out = capsys.readouterr().out
    assert "L1:4" in out
    assert "1 of 1" in out  # L
    assert "0 of 1" in out  # C and S
    assert "pairs of classes  1 of 3" in out
    assert "pairs missing  C+S L+S" in out
    assert "not modelled  B1: not modelled: no SMBus" in out
    assert "violation  seed 2, 12.500 s: two copies run" in out
    assert ASKED.replay(2) in out
    assert out.rstrip().endswith("violations  1")
    assert "B1:" not in out.replace("B1: not modelled", "")  # never as if it had passed


def test_a_report_without_a_seed_divides_by_nothing() -> None:
    assert Report(ASKED).to_json()["speed_ratio"] == 0.0
