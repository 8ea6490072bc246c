"""The journal after a power cut: the production's code on every image that a cut can leave."""

import re
import subprocess
import sys
from collections import deque
from pathlib import Path

import pytest

from hal.linux import journal_file
from hal.linux.journal import SqliteJournal
from hal.ports import JournalRecord
from tools.sim.crash import run
from tools.sim.crash.disk import Disk
from tools.sim.crash.events import (
    Acknowledged,
    Name,
    Rename,
    Resize,
    Submitted,
    Sync,
    SyncDir,
    Unname,
    Write,
)
from tools.sim.crash.operations import card_operations
from tools.sim.crash.record import BUSY_S, WAL_LIMIT_BYTES, Commit, inline_reactor, plan, record
from tools.sim.crash.scratch import lay_out
from tools.sim.crash.sweep import Share, points, sweep
from tools.sim.crash.trial import JournalTrial, load

PLAY = """
import sys
from tools.sim.crash.record import plan, record
from tools.sim.crash.operations import card_operations
print(*record(plan(card_operations(25, 3), 3), sys.argv[1]).events, sep="\\n")
"""


def test_every_cut_of_a_busy_card_leaves_a_committed_prefix_with_all_acknowledged() -> None:
    report = run(50, seed=1)
    assert report.violations == []
    assert report.complete
    assert report.commits > 15
    assert report.total > 3000
    assert set(report.points) == {
        "boundary",
        "torn",
        "subset",
        "drawn",
        "reopened",
        "second",
        "after a kill",
    }
    assert report.again >= 3


def test_a_short_life_survives_a_second_cut_while_it_recovers_and_goes_on(tmp_path) -> None:
    recording = record(plan(card_operations(4, 2), 2), str(tmp_path))
    tally = sweep(recording, JournalTrial(recording.states), again_every=251, kill_every=10)
    assert tally.violations == []
    assert tally.again > 3
    assert tally.points["second"] > 300
    assert tally.points["after a kill"] > 100


def test_several_processes_try_the_same_points_as_one() -> None:
    alone, shared = run(12, seed=5, second_cuts=0), run(12, seed=5, second_cuts=0, jobs=2)
    del alone.points["reopened"], shared.points["reopened"]  # each counts its own
    assert alone.points == shared.points
    assert shared.good


def test_a_sweep_that_runs_late_says_that_it_is_not_complete() -> None:
    report = run(12, deadline_s=0.0)
    assert not report.complete
    assert not report.good
    assert "not complete" in "\n".join(report.lines())


# --- broken on purpose ---


class NoSync(SqliteJournal):
    """Acknowledges without waiting for the disk."""

    def __init__(self, path, reactor, **more) -> None:
        super().__init__(path, reactor, **more)
        self._connection.execute("PRAGMA synchronous = OFF")


class OnlyNormal(NoSync):
    """Syncs at checkpoints only: what SQLite itself advises for WAL."""

    def __init__(self, path, reactor, **more) -> None:
        super().__init__(path, reactor, **more)
        self._connection.execute("PRAGMA synchronous = NORMAL")


class AnswersFirst(SqliteJournal):
    """Acknowledges before it commits."""

    def _commit(self, group):
        waiting = deque(group)
        self._answer(deque(waiting), None)
        result = super()._commit(waiting)
        group.clear()
        return result


class RecordByRecord(SqliteJournal):
    """Each record is a transaction of its own."""

    def _commit(self, group):
        for waiting in group:
            for kind, key, value in waiting.rows:
                one = "REPLACE INTO decision (kind, key, value) VALUES (?, ?, ?)"
                gone = "DELETE FROM decision WHERE kind = ? AND key = ? AND ? IS NULL"
                self._connection.execute(one if value is not None else gone, (kind, key, value))


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (NoSync, "acknowledged and lost"),
        (OnlyNormal, "acknowledged and lost"),
        (AnswersFirst, "acknowledged and lost"),
        (RecordByRecord, "no committed prefix"),
    ],
)
def test_a_journal_that_breaks_its_promise_is_caught(broken, said) -> None:
    def make(path, reactor):
        return broken(path, reactor, wal_limit_bytes=WAL_LIMIT_BYTES, idle_s=BUSY_S)

    report = run(12, make=make, second_cuts=0)
    assert not report.good
    assert any(said in violation.text for violation in report.violations)


def test_a_start_that_relies_on_what_a_killed_holder_had_not_synced_is_caught(monkeypatch) -> None:
    monkeypatch.setattr(journal_file, "_settle", lambda _connection: None)
    report = run(3, second_cuts=10)
    assert report.violations != []
    assert {violation.kind for violation in report.violations} == {"killed"}


def test_a_record_that_differs_in_one_byte_is_no_committed_prefix(tmp_path) -> None:
    recording = record([(Commit(((put("a", b"1"),),)),)], str(tmp_path))
    wrong = [[], [put("a", b"2")]]
    assert load(str(tmp_path)) == [put("a", b"1")]
    assert JournalTrial(recording.states).judge(str(tmp_path), 1, 1) == ""
    assert "no committed prefix" in JournalTrial(wrong).judge(str(tmp_path), 1, 1)
    assert "acknowledged and lost" in JournalTrial([*recording.states, []]).judge(
        str(tmp_path), 2, 2
    )


def put(key: str, value: bytes) -> JournalRecord:
    return JournalRecord(kind="meta", key=key, value=value)


# --- the recording ---


def test_the_recording_has_all_kinds_of_writes_and_is_the_same_in_every_run(tmp_path) -> None:
    lives = plan(card_operations(60, 1), 1)
    runs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        runs.append(record(lives, str(tmp_path / name), seed=1))
    one, two = runs
    assert one.events == two.events
    kinds = {type(event) for event in one.events}
    assert kinds == {
        Write, Resize, Sync, Name, Unname, Rename, SyncDir, Submitted, Acknowledged
    }  # fmt: skip
    assert len(one.states) == 1 + sum(len(life) for life in lives)
    assert any(len(commit.batches) > 2 for life in lives for commit in life)
    wals = [event for event in one.events if event == Unname("state/journal.db-wal")]
    assert len(wals) == len(lives) > 1  # each life ends with a checkpoint


def test_commits_of_several_batches_are_one_sync(tmp_path) -> None:
    batches = tuple((put(f"k{n}", b"v" * 300),) for n in range(5))
    recording = record([(Commit((batches[0],)), Commit(batches))], str(tmp_path))
    events = recording.events
    start = events.index(Submitted(2))
    end = events.index(Acknowledged(2))
    assert [type(event) for event in events[start:end]].count(Sync) == 1
    assert events[end : end + 5] == [Acknowledged(2)] * 5


def test_opening_after_a_cut_empties_the_log_only_when_the_file_holds_it_safely(tmp_path) -> None:
    """So that a crash during the recovery loses nothing: the log is synced, what it holds is
    written into the file and synced there, and then the log is emptied."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    recording = record([(Commit(((put("a", b"1"),),)), Commit(((put("b", b"2"),),)))], str(first))
    start = recording.events.index(Submitted(2))
    opened = 0
    for point in points(recording, Disk(), 0, Share(), lambda _done, _total: None):
        if point.event > start and "state/journal.db-wal" in point.image:
            lay_out(str(second), point.image)
            again = record([(Commit(((put("c", b"3"),),)),)], str(second))
            before = again.events[: again.events.index(Submitted(1))]
            file, log = 1, 2
            emptied = before.index(Resize(log, 0))
            written = [n for n, e in enumerate(before) if isinstance(e, Write) and e.file == file]
            if written:
                assert before.index(Sync(log)) < written[0]
                assert written[-1] < before.index(Sync(file)) < emptied
            assert not [e for e in before if isinstance(e, Write) and e.file == log]
            opened += 1
    assert opened > 10


def test_the_recording_is_what_the_system_calls_say(tmp_path) -> None:
    """strace(1), where there is one, sees the same writes, sizes, names and syncs in order."""
    trace = tmp_path / "trace"
    state = tmp_path / "disk"
    state.mkdir()
    calls = "pwrite64,write,ftruncate,fsync,fdatasync,rename,unlink,mkdir,openat,open"
    command = ["strace", "-f", "-y", "-s", "0", "-o", str(trace), "-e", f"trace={calls}"]
    try:
        done = subprocess.run(
            [*command, sys.executable, "-c", PLAY, str(state)],
            capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("strace is not installed")
    if done.returncode != 0 and "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    assert _from_strace(trace.read_text(), str(state)) == _from_log(done.stdout)


def _from_log(text: str) -> list[str]:
    said = []
    for line in text.splitlines():
        if match := re.match(r"Write\(file=\d+, offset=(\d+)", line):
            data = eval(line, {"Write": Write}).data
            said.append(f"write {len(data)} at {match[1]}")
        elif match := re.match(r"Resize\(file=\d+, size=(\d+)\)", line):
            said.append(f"resize {match[1]}")
        elif line.startswith("SyncDir"):
            said.append("sync directory")
        elif line.startswith("Sync"):
            said.append("sync")
        elif match := re.match(r"(Unname|Rename)\((?:path|old)='([^']*)'", line):
            said.append(f"{match[1]} {match[2]}")
    return said


def _from_strace(text: str, root: str) -> list[str]:
    said = []
    unfinished: dict[str, str] = {}
    for raw in text.splitlines():
        pid, _, line = raw.partition(" ")
        line = line.strip()
        if line.endswith("<unfinished ...>"):
            unfinished[pid] = line.removesuffix("<unfinished ...>")
            continue
        if match := re.match(r"<\.\.\. \w+ resumed>(.*)", line):
            line = unfinished.pop(pid).rstrip() + match[1]
        if root not in line or re.search(r"= -1 ", line):
            continue
        if match := re.match(r'pwrite64\(.*, ""\.\.\., (\d+), (\d+)\)', line):
            said.append(f"write {match[1]} at {match[2]}")
        elif match := re.match(r"ftruncate\(\d+<.*>, (\d+)\)", line):
            said.append(f"resize {match[1]}")
        elif match := re.match(rf"f(?:data)?sync\(\d+<{root}(/[^>]*)?>\)", line):
            whole = match[1] or ""
            said.append("sync directory" if whole in ("", "/state") else "sync")
        elif match := re.match(rf'(unlink|rename)\("{root}/([^"]*)"', line):
            said.append(f"{'Unname' if match[1] == 'unlink' else 'Rename'} {match[2]}")
    return said


def test_a_journal_outside_the_recording_is_left_alone(tmp_path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()

    def make(path, reactor):
        SqliteJournal(outside / "journal.db", inline_reactor()).close()
        return SqliteJournal(path, reactor)

    recording = record([(Commit(((put("a", b"1"),),)),)], str(inside), make=make)
    names = [event.path for event in recording.events if isinstance(event, Name)]
    assert all(name.startswith("state") for name in names)
    assert (outside / "journal.db").exists()
