"""`apf sim`: options, exit codes, what is written where."""

import json

import pytest

from tools.cli import cli
from tools.sim import command
from tools.sim.run import Found, Outcome, run_seed

SHORT = ("--board", "mock_4", "--hours", "0.005", "--jobs", "1")


def apf(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as info:
        cli.main(["sim", *words])
    out, err = capsys.readouterr()
    return int(info.value.code or 0), out, err


def test_clean_seeds_end_0_with_one_envelope(capsys) -> None:
    status, out, _ = apf(capsys, *SHORT, "--seeds", "1-2", "--faults", "L1,C1", "--json")
    assert status == 0
    document = json.loads(out)
    assert document["kind"] == "sim"
    assert document["data"]["seeds"] == 2
    assert document["data"]["simulated_s"] >= 36.0
    assert document["data"]["faults"].keys() == {"L1", "C1"}
    assert document["data"]["violations"] == []


def test_jobs_do_not_change_what_a_run_is(capsys) -> None:
    said = []
    for jobs in ("1", "2"):
        _, out, _ = apf(capsys, *SHORT[:-1], jobs, "--seeds", "1-4", "--json")
        said.append(json.loads(out)["data"])
    assert said[0]["trace_sha256"] == said[1]["trace_sha256"]
    assert said[0]["faults"] == said[1]["faults"]


def test_a_violation_ends_1_is_made_shorter_and_can_be_replayed(capsys, monkeypatch) -> None:
    found = Found(invariant="two copies run", at_s=1.0, text="twice", detail="the trace of it")

    def broken(seed: int, **_asked: object) -> Outcome:
        return Outcome(seed=seed, violation=found if seed == 2 else None)

    def run_plan(plan, *, only, sink=None) -> Outcome:
        needed = {plan.steps[0].number, plan.steps[-1].number}
        return Outcome(seed=plan.seed, violation=found if needed <= only else None)

    monkeypatch.setattr(command, "run_seed", broken)
    monkeypatch.setattr(command, "run_plan", run_plan)
    options = ("--board", "mock_4", "--hours", "0.25", "--jobs", "1", "--faults", "L,C")
    status, out, _ = apf(capsys, *options, "--seeds", "1-3", "--json")
    assert status == 1
    (violation,) = json.loads(out)["data"]["violations"]
    assert violation["seed"] == 2
    assert violation["replay"].startswith("apf sim --board mock_4 --replay 2 ")
    assert len(violation["shrunk"]["steps"]) == 2
    status, out, err = apf(capsys, *options, "--replay", "2", "--no-shrink")
    assert status == 1
    assert "the trace of it" in err
    assert "two copies run" in out


def test_a_replayed_seed_writes_every_line_of_its_trace(capsys, tmp_path) -> None:
    file = tmp_path / "trace"
    options = (*SHORT, "--replay", "4", "--trace", str(file), "--json")
    status, out, _ = apf(capsys, *options)
    assert status == 0
    lines = file.read_text().splitlines()
    assert len(lines) == json.loads(out)["data"]["events"]
    assert all(len(line.split(" ", 3)) >= 3 and line.split()[0].isdecimal() for line in lines)
    assert run_seed(4, board="mock_4", hours=0.005).events == len(lines)


def test_steps_of_a_replay_can_be_left_out(capsys, tmp_path) -> None:
    file = tmp_path / "trace"
    options = ("--board", "mock_4", "--hours", "0.05", "--replay", "1", "--trace", str(file))
    apf(capsys, *options, "--steps", "0,2", "--json")
    text = file.read_text()
    assert " sim step 0 " in text
    assert " sim step 2 " in text
    assert " sim step 1 " not in text
    apf(capsys, *options, "--steps", "none", "--json")
    assert " sim step " not in file.read_text()


def test_who_interrupts_gets_the_report_of_the_seeds_until_then(capsys, monkeypatch) -> None:
    def run_all(seeds, _run, **_options):
        yield Outcome(seed=seeds[0], simulated_s=9.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run_all", run_all)
    status, out, err = apf(capsys, *SHORT, "--seeds", "5-9", "--json")
    assert status == 130
    assert json.loads(out)["data"]["seeds"] == 1
    assert "interrupted after 1 of 5 seeds" in err


def test_the_catalogue_is_listed_with_what_is_not_modelled(capsys) -> None:
    status, out, _ = apf(capsys, "--list-faults", "--json")
    rows = json.loads(out)["data"]
    assert status == 0
    assert len(rows) == 81
    assert all(row["modelled"] == (row["not_modelled"] is None) for row in rows)
    status, out, _ = apf(capsys, "--list-faults")
    assert len([line for line in out.splitlines() if line.strip()]) >= 82


@pytest.mark.parametrize(
    "words",
    [
        ("--seeds", "5-1"),
        ("--seeds", "x"),
        ("--seeds", "1-"),
        ("--seeds", "0-99999999999"),
        ("--faults", "L99"),
        ("--faults", ""),
        ("--hours", "0"),
        ("--hours", "nan"),
        ("--heartbeat-hz", "0"),
        ("--board", "none_such"),
        ("--steps", "1"),
        ("--replay", "1", "--steps", "a"),
        ("--trace", "x"),
        ("--replay", "1", "--trace", "/none/such/dir/file"),
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_refused_before_anything_runs(capsys, words) -> None:
    status, out, err = apf(capsys, *words)
    assert status == 2
    assert out == ""
    assert err.startswith("apf: ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--crash-points --lease-proof 4", "--lease-proof and --crash-points: each is a run"),
        ("--replay 3 --lease-proof 4", "--lease-proof and --replay: each is a run"),
        ("--replay 3 --list-faults", "--list-faults and --replay: each is a run"),
        ("--replay -1", "Invalid value for '--replay'"),
    ],
)
def test_a_run_is_of_one_kind_and_a_seed_is_no_negative_number(capsys, words, said) -> None:
    status, out, err = apf(capsys, *SHORT, *words.split())
    assert (status, out) == (2, "")
    assert said in err
