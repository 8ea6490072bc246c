"""`apf demo` on this machine: it holds, it fails when something is broken, it leaves nothing."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.process.local_card import BUSYBOX, ROOT
from tools.demo import observe_card
from tools.demo.steps import STEPS

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="containers, cgroups and kills need root"),
    pytest.mark.skipif(not BUSYBOX, reason="busybox-static is not installed"),
    pytest.mark.skipif(not shutil.which("runc"), reason="runc is not installed"),
]

PLACE = re.compile(r"/tmp/apf-[a-z0-9_]+")
BROKEN_LIMIT_S = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    code: int
    rows: list[dict[str, Any]]
    words: str
    place: Path

    def steps(self) -> dict[str, bool]:
        return {row["step"]: row["ok"] for row in self.rows}

    def last_words(self) -> str:
        return str(self.rows[-1]["proof"][-1])


def start(*words: str, **env: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tools", "demo", "--json", *words],
        cwd=ROOT,
        env=os.environ | {"NO_COLOR": "1"} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def demo(*words: str, timeout_s: float = 200, **env: str) -> Ended:
    child = start(*words, **env)
    try:
        out, err = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        child.terminate()
        out, err = child.communicate(timeout=60)
        raise AssertionError(f"apf demo did not end in {timeout_s} s\n{out}\n{err}") from None
    sys.stderr.write(err)  # shown when the test fails
    document = json.loads(out)
    assert document["kind"] == "demo", document
    place = PLACE.search(err)
    assert place, err
    return Ended(code=child.returncode, rows=document["data"], words=err, place=Path(place[0]))


def assert_nothing_left(place: Path) -> None:
    assert not place.exists()
    assert observe_card.card_processes(place / "run") == []
    assert observe_card.mounts_below(place) == []


def test_the_whole_job_holds_and_each_step_says_what_was_seen() -> None:
    ended = demo()
    assert ended.code == 0, ended.last_words()
    assert ended.steps() == {step.name: True for step in STEPS}
    for row in ended.rows:
        assert set(row) == {"step", "ok", "ms", "proof"}
        assert row["ms"] >= 0
        assert row["proof"], row["step"]
    assert_nothing_left(ended.place)
    assert "\x1b[" not in ended.words


def test_without_runc_it_says_so_and_runs_processes(tmp_path: Path) -> None:
    for name in ("sh", "apt-get", "nsenter"):  # a PATH with what the host has, but for runc
        if (found := shutil.which(name)) is not None:
            (tmp_path / name).symlink_to(found)
    for directory in ("/usr/bin", "/bin"):
        for program in Path(directory).iterdir():
            target = tmp_path / program.name
            if program.name != "runc" and not target.is_symlink():
                target.symlink_to(program)
    ended = demo(PATH=str(tmp_path))
    assert ended.code == 0, ended.last_words()
    assert "processes, no containers (missing for containers: runc)" in ended.words
    assert_nothing_left(ended.place)


@pytest.mark.parametrize(
    ("fault", "step", "words"),
    [
        ("relay", "place", "the relay of cnm1 is cut"),
        ("window", "transfer", "the window of cnm0 is cut"),
        ("output", "deploy", "goodbye from shop/web/0: page 1"),
    ],
)
def test_what_is_broken_on_purpose_makes_it_fail_and_is_named(
    fault: str, step: str, words: str
) -> None:
    ended = demo("--break", fault, timeout_s=BROKEN_LIMIT_S)
    assert ended.code == 1
    assert ended.rows[-1]["step"] == step
    assert [row["ok"] for row in ended.rows] == [True] * (len(ended.rows) - 1) + [False]
    assert words in ended.last_words()
    assert f"step {step} did not hold" in ended.words
    assert_nothing_left(ended.place)


def test_told_to_end_in_the_middle_it_cleans_up() -> None:
    child = start()
    seen = ""
    assert child.stderr is not None
    for line in child.stderr:
        seen += line
        if "deploy:" in line:
            break
    child.send_signal(signal.SIGTERM)
    _, rest = child.communicate(timeout=100)
    assert child.returncode == 130, rest
    place = PLACE.search(seen)
    assert place
    deadline = time.monotonic() + 10
    while observe_card.card_processes(Path(place[0]) / "run") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert_nothing_left(Path(place[0]))


def test_a_board_without_real_processes_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools", "demo", "--board", "mock_4", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "not_local"
    assert "Traceback" not in done.stderr
