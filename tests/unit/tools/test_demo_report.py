"""What the demo says, and how its steps end."""

import json

import pytest
from rich.console import Console

from hal.errors import Unavailable
from tools.demo import runner as runner_module
from tools.demo.breaking import Break, Breaker, compose_env
from tools.demo.errors import StepFailed, hold
from tools.demo.evidence import cuts
from tools.demo.mode import find_mode
from tools.demo.report import Progress, StepResult, show, verdict
from tools.demo.runner import Step, run_steps
from tools.demo.steps import STEPS
from tools.demo.waits import wait_for
from tools.errors import DaemonUnreachable
from tools.output import Output


class StillClock:
    """Waits take no time but its own."""

    def __init__(self):
        self.ns = 1_000

    def now_ns(self):
        return self.ns

    def wait(self, until_ns):
        self.ns = max(self.ns, until_ns)
        return ()


class SmallContext:
    def __init__(self):
        self.clock = StillClock()


@pytest.fixture
def lines(monkeypatch):
    monkeypatch.setattr(runner_module, "evidence", lambda _context: "the relay of cnm1 is cut")
    console = Console(record=True, width=200, force_terminal=False)
    progress = Progress(3, console)
    return progress, lambda: console.export_text()


def good(_context):
    yield "seen"


def test_each_step_gets_its_time_and_its_proofs(lines):
    def slow(context):
        context.clock.ns += 7_000_000
        yield "one"
        yield "two"

    progress, text = lines
    steps = [Step(name="a", claim="it holds", run=slow), Step(name="b", claim="so", run=good)]
    results = run_steps(steps, SmallContext(), Breaker(Break.NONE), progress)
    assert [item.to_json() for item in results] == [
        {"step": "a", "ok": True, "ms": 7, "proof": ["one", "two"]},
        {"step": "b", "ok": True, "ms": 0, "proof": ["seen"]},
    ]
    assert "[ 1/3] a: it holds" in text()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (StepFailed("cnm0 is gone"), "cnm0 is gone"),
        (DaemonUnreachable("daemon_unreachable", "nobody answers"), "nobody answers"),
        (Unavailable("no keeper"), "no keeper"),
        (PermissionError(13, "Permission denied"), "PermissionError"),
    ],
)
def test_the_first_step_that_does_not_hold_ends_it_with_what_was_seen(lines, error, words):
    def bad(_context):
        yield "this much was so"
        raise error

    progress, text = lines
    steps = [Step(name=n, claim=n, run=r) for n, r in (("a", good), ("b", bad), ("c", good))]
    results = run_steps(steps, SmallContext(), Breaker(Break.NONE), progress)
    assert [(item.step, item.ok) for item in results] == [("a", True), ("b", False)]
    assert results[-1].proof[0] == "this much was so"
    assert words in results[-1].proof[-1]
    assert "the relay of cnm1 is cut" in results[-1].proof[-1]
    assert "FAILED" in text()
    fine, said = verdict(results, 3, 10)
    assert not fine
    assert "step b did not hold" in said
    assert words in said


def test_a_bug_of_ours_is_not_taken_for_a_step_that_failed(lines):
    def broken(_context):
        yield "x"
        raise KeyError("bug")

    with pytest.raises(KeyError):
        run_steps(
            [Step(name="a", claim="", run=broken)], SmallContext(), Breaker(Break.NONE), lines[0]
        )


def test_all_steps_must_have_been_reached():
    assert verdict([StepResult(step="up", ok=True)], 2, 5) == (
        False,
        "demo: 1 of 2 steps were not reached",
    )
    fine, words = verdict([StepResult(step="up", ok=True)], 1, 1500)
    assert fine
    assert words == "demo: all 1 steps held, 1.5 s"


def test_the_result_is_one_envelope_of_kind_demo(capsys):
    show(Output(as_json=True), [StepResult(step="up", ok=True, ms=3, proof=["p"])], "words")
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["schema"], document["kind"]) == ("apf/1", "demo")
    assert document["data"] == [{"step": "up", "ok": True, "ms": 3, "proof": ["p"]}]
    assert err == "words\n"


def test_people_see_a_table_with_the_proof_or_what_went_wrong(capsys):
    rows = [
        StepResult(step="up", ok=True, ms=3, proof=["first", "second"]),
        StepResult(step="drain", ms=1200, proof=["first", "left over"]),
        StepResult(step="down", ok=True),
    ]
    show(Output(as_json=False), rows, "words")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["up", "ok", "3", "ms", "first"]
    assert lines[2].split() == ["drain", "FAILED", "1.2", "s", "left", "over"]
    assert lines[3].split() == ["down", "ok", "0", "ms", "-"]


def test_foreign_control_characters_do_not_reach_the_terminal(lines):
    progress, text = lines
    progress.proof("\x1b[2J gone")
    shown = text()
    assert "\x1b" not in shown
    assert "\\x1b[2J gone" in shown


def test_a_wait_ends_at_its_deadline_with_what_was_seen():
    clock = StillClock()
    looks = []
    with pytest.raises(StepFailed, match=r"it rains: not so after 0\.1 s; the sun shines"):
        wait_for(
            clock,
            "it rains",
            lambda: looks.append(clock.ns),
            timeout_ms=100,
            every_ms=30,
            seen=lambda: "the sun shines",
        )
    assert len(looks) == 5  # at 0, 30, 60, 90 and 120 ms
    assert wait_for(clock, "now", lambda: "yes", timeout_ms=0) == "yes"


def test_hold_takes_what_is_true_for_an_answer():
    hold([1], "never said")
    with pytest.raises(StepFailed, match="nothing"):
        hold([], "nothing")


def test_the_keepers_cuts_are_named_with_their_module():
    def slot(name, *, cut=False, window=False, phase="on"):
        links = [{"name": "mc", "cut": cut}, {"name": "agent", "cut": cut}]
        return {"id": name, "links": links, "window_cut": window, "phase": phase}

    rows = [slot("cnm0"), slot("cnm1", cut=True), slot("cnm2", window=True, phase="off")]
    assert cuts({"slots": rows}) == [
        "the relay of cnm1 is cut (control links mc, agent)",
        "the window of cnm2 is cut",
        "cnm2 has no power (off)",
    ]


def test_every_break_has_a_step_to_hurt_or_a_component_to_spoil():
    names = {step.name for step in STEPS}
    for fault in (Break.RELAY, Break.WINDOW):
        assert Breaker(fault)._step in names
    assert compose_env(Break.OUTPUT) == {"DEMO_GREETING": "goodbye"}
    assert compose_env(Break.RELAY) == {}


@pytest.mark.parametrize(
    ("uid", "path", "busybox", "missing"),
    [
        (0, True, True, ""),
        (1000, True, True, "the rights of root"),
        (0, False, True, "runc, nsenter"),
        (0, True, False, "busybox (busybox-static)"),
    ],
)
def test_containers_need_root_runc_and_busybox(tmp_path, uid, path, busybox, missing):
    for name in ("runc", "nsenter", "busybox"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    found = find_mode(
        uid=uid,
        path=str(tmp_path) if path else str(tmp_path / "none"),
        places=[str(tmp_path / "busybox")] if busybox else [],
    )
    assert found.containers == (not missing)
    assert (found.image, found.runtime) == (
        ("busybox", "oci") if not missing else ("host", "process")
    )
    assert missing in found.why
