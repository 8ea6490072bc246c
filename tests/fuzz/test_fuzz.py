"""Every target over its corpus and some mutated inputs, and the driver's own promises."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import table
from tests.fuzz.__main__ import main
from tests.fuzz.corpus import CORPUS, committed, inputs_of, name_of
from tests.fuzz.mutate import Mutator
from tests.fuzz.reader import Reader, edited, json_text
from tests.fuzz.resync import measure
from tests.fuzz.runs import ROOT, Result, run_plain
from tests.fuzz.table import TARGETS
from tests.fuzz.target import Check, Target

MUTATED = 30
CORPUS_LIMIT_BYTES = 300 << 10


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_and_what_chance_makes_of_it_harm_nobody(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    known = committed(target)
    assert known, "there is a corpus"
    draw = Mutator(inputs_of(target), target.words, target.max_bytes, seed=1)
    check = target.make(tmp_path)
    good = [bool(check(data)) for data in known]
    for _ in range(MUTATED):
        good.append(bool(check(draw.next())))
    assert any(good), "a target that accepts nothing tests nothing"
    assert not all(good), "nor does one that refuses nothing"


def test_the_corpus_is_small_and_named_by_its_content() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < CORPUS_LIMIT_BYTES
    assert {path.parent.name for path in files} == set(TARGETS)
    assert [path for path in files if path.name != name_of(path.read_bytes())] == []


def test_damage_costs_the_frame_that_it_hit_and_at_most_the_next() -> None:
    for cost in measure(rounds=60, seed=1):
        assert cost.most_frames <= 2, cost
        assert cost.mean_frames <= 1.3, cost


def _target(check: Check, **more: object) -> Target:
    return Target(
        name="made up",
        text="for a test",
        make=lambda _scratch: check,
        seeds=lambda: [b"seed", b"bad"][: 1 + bool(more)],
        max_bytes=64,
    )


def _refuses_bad(data: bytes) -> bool:
    if data == b"bad":
        raise ZeroDivisionError
    return True


def test_a_crash_ends_the_run_and_its_input_is_kept(tmp_path: Path) -> None:
    result = run_plain(_target(_refuses_bad, bad=1), inputs=50, crashes=tmp_path / "crashes")
    [file] = result.crashes or []
    assert Path(file).read_bytes() == b"bad"
    assert result.inputs == 2


def test_a_run_with_a_crash_ends_1_and_says_how_to_replay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "TARGETS", {"bad": _target(_refuses_bad, bad=1)})
    words = ["run", "--plain", "--inputs", "50", "--work", str(tmp_path), "bad"]
    assert main(words) == 1
    said = capsys.readouterr().out
    [kept] = (tmp_path / "crashes").iterdir()
    assert f"replay: python -m tests.fuzz replay bad {kept}" in said
    assert "1 crashes" in said
    monkeypatch.setattr(table, "TARGETS", {"good": _target(lambda _data: True)})
    assert main([*words[:-1], "good"]) == 0


def test_a_run_ends_after_its_inputs_and_counts_what_was_accepted() -> None:
    result = run_plain(_target(lambda data: len(data) > 3), inputs=300)
    assert result.inputs == 300
    assert 0 < (result.accepted or 0) < 300
    assert set(result.to_json()) >= {"target", "inputs", "seconds", "rate", "crashes"}


def test_the_same_seed_makes_the_same_inputs_and_none_is_too_long() -> None:
    def made(seed: int) -> list[bytes]:
        draw = Mutator([b"x" * 60, b"{}"], [b"word"], 64, seed)
        return [draw.next() for _ in range(500)]

    assert made(1) == made(1)
    assert made(1) != made(2)
    assert max(map(len, made(1))) <= 64
    assert len(set(made(1))) > 400


def test_the_command_says_what_there_is_and_what_there_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["list"]) == 0
    assert "serial " in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["run", "no-such-target"])
    assert ended.value.code == 2
    assert "no-such-target" in capsys.readouterr().err


def test_a_run_and_a_replay_from_the_command_line(tmp_path: Path) -> None:
    def fuzz(*words: str) -> "subprocess.CompletedProcess[str]":
        argv = [sys.executable, "-m", "tests.fuzz", *words]
        return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)

    report = tmp_path / "report.json"
    words = "run", "--plain", "--inputs", "200", "--work", str(tmp_path), "--json", str(report)
    done = fuzz(*words, "packet")
    assert done.returncode == 0, done.stderr
    assert "200 inputs" in done.stdout
    assert '"inputs": 200' in report.read_text()
    (tmp_path / "input").write_bytes(b"\x01\x09\x08\xc8\x00")
    assert "accepted" in fuzz("replay", "packet", str(tmp_path / "input")).stdout


def test_a_result_is_one_line() -> None:
    result = Result(target="t", engine="plain", inputs=1_000_000, seconds=2.0)
    assert "1,000,000 inputs" in result.line()
    assert "500,000/s" in result.line()


DOCUMENT = {"a": [1, {"b": "text"}], "c": None}


@settings(max_examples=300)
@given(st.binary(max_size=60), st.sampled_from([json_text, edited]))
def test_any_bytes_are_a_program_that_edits(data: bytes, how: Callable[..., object]) -> None:
    if how is edited:
        edited(DOCUMENT, Reader(data), ("word",))
    else:
        text = json_text(data, [DOCUMENT], ("word",))
        assert data[:1] <= b"\x08" or text == data
    assert DOCUMENT == {"a": [1, {"b": "text"}], "c": None}, "the original stays as it was"
