"""`apf sim --crash-points`: exit codes, and what is written where."""

import json

import pytest

from tools.cli import cli
from tools.sim.crash import command
from tools.sim.crash.report import CrashReport
from tools.sim.crash.sweep import CrashViolation
from tools.sim.crash.vfs import NotRecordable


def apf(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as info:
        cli.main(["sim", "--crash-points", "--jobs", "1", *words])
    out, err = capsys.readouterr()
    return int(info.value.code or 0), out, err


def test_a_short_sweep_ends_0_with_one_envelope(capsys) -> None:
    status, out, _ = apf(capsys, "--operations", "3", "--json")
    assert status == 0
    document = json.loads(out)
    assert document["kind"] == "crash_points"
    data = document["data"]
    assert data["operations"] == 3
    assert data["violations"] == []
    assert data["complete"] is True
    assert data["crash_points"] == sum(data["points"].values()) > 500
    assert data["crash_points_per_s"] > 0


def test_people_are_told_how_many_points_and_that_all_recover(capsys) -> None:
    status, out, _ = apf(capsys, "--operations", "2")
    assert status == 0
    first, *_, last = out.splitlines()
    assert first.startswith("2 operations in 2 commits")
    assert last.startswith("every one recovers to a committed prefix")


def test_a_violation_ends_1_and_is_shown(capsys, monkeypatch) -> None:
    found = CrashViolation(event=7, kind="torn", text="acknowledged and lost", fates="torn:101")
    report = CrashReport(
        operations=1, seed=1, commits=1, writes=1, written_bytes=1, syncs=1, points={"torn": 1},
        again=0, violations=[found], complete=True, elapsed_s=1.0, cpu_s=1.0,
    )  # fmt: skip
    monkeypatch.setattr(command, "run", lambda *_args, **_more: report)
    status, out, _ = apf(capsys)
    assert status == 1
    assert "VIOLATION at event 7 (torn): acknowledged and lost [torn:101]" in out


def test_a_python_whose_sqlite_can_not_be_watched_is_told(capsys, monkeypatch) -> None:
    def refuse(*_args, **_more) -> CrashReport:
        raise NotRecordable("libsqlite3.so.0 can't be loaded")

    monkeypatch.setattr(command, "run", refuse)
    status, _, err = apf(capsys)
    assert status == 1
    assert "libsqlite3.so.0" in err
