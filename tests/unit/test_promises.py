"""firmware/FAULTS.md names tests that exist, and has a promise for every fault of the catalogue."""

import re
import subprocess
from pathlib import Path

import pytest

from tools.sim.faults import CLASSES, FAULTS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "firmware" / "FAULTS.md").read_text()


def test_every_test_that_is_named_is_there() -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", TEXT))
    assert len(named) > 20
    assert sorted(path for path in named if not (ROOT / path).is_file()) == []


def test_every_class_of_the_catalogue_has_its_promise() -> None:
    rows = TEXT.partition("## Promises by class")[2].partition("## Bugs")[0].splitlines()
    covered: set[str] = set()
    for row in rows:
        for first, last in re.findall(r"\b([A-Z]\d+)(?:-([A-Z]\d+))?", str(row.split("|")[1:2])):
            letter = first[0]
            covered |= {f"{letter}{n}" for n in range(int(first[1:]), int((last or first)[1:]) + 1)}
    classes_without_ids = {"B"}
    wanted = {name for name in FAULTS if name[0] not in classes_without_ids}
    assert sorted(wanted - covered) == []
    assert set(CLASSES) == {name[0] for name in FAULTS}


def test_every_bug_has_a_test_and_names_the_commit_that_mended_it() -> None:
    table = TEXT.partition("## Bugs")[2].splitlines()
    rows = [row for row in table if row.startswith("| ") and not row.startswith(("| bug", "| --"))]
    assert len(rows) > 50
    assert [row for row in rows if not re.search(r"`(tests/[\w/]+\.py|apf bench \w+)`", row)] == []
    if _git("rev-parse", "--is-shallow-repository") != ["false"]:
        pytest.skip("the history of the repository is not here")
    # the subject of a commit, or a line of one that mended several
    subjects = {line.removeprefix("- ") for line in _git("log", "--format=%B")}
    named = [re.findall(r"`([^`]+: [^`]+)`", row.rstrip(" |").rsplit("|", 1)[1]) for row in rows]
    assert [name for names in named for name in names if name not in subjects] == []


def _git(*words: str) -> list[str]:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()
