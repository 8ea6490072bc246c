"""kill -9 of a writer at any point: everything that it was told is durable is there."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from firmware.loop import Loop
from hal.linux.journal import SqliteJournal

pytestmark = pytest.mark.process
ROUNDS = 10

WRITER = """
import os, sys
from firmware.loop import Loop
from hal.linux.clock import LinuxClock
from hal.linux.journal import SqliteJournal
from hal.ports import JournalRecord
loop = Loop(LinuxClock())
journal = SqliteJournal(sys.argv[1], loop)
journal.load()
start = int(sys.argv[2])
def submit(n):
    def done(error):
        assert error is None, error
        os.write(1, b"%d\\n" % n)
        submit(n + 8)
    journal.submit([JournalRecord(kind="a", key=str(n), value=b"x" * (n % 3000)),
                    JournalRecord(kind="b", key=str(n), value=b"y")], done)
for n in range(start, start + 8):
    submit(n)
loop.run()
"""


def test_what_was_acknowledged_survives_and_no_batch_is_torn(tmp_path, loop: Loop) -> None:
    path = tmp_path / "journal.db"
    rng = random.Random(7)
    acknowledged: set[str] = set()
    for round_number in range(ROUNDS):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(round_number * 1_000_000)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[3],
        )
        for _ in range(rng.randrange(1, 400)):
            acknowledged.add(writer.stdout.readline().decode().strip())
        writer.send_signal(signal.SIGKILL)
        acknowledged.update(line.decode().strip() for line in writer.stdout if line[-1:] == b"\n")
        writer.wait()
        writer.stdout.close()
        journal = SqliteJournal(path, loop)
        records = journal.load()
        journal.close()
        first = {record.key for record in records if record.kind == "a"}
        assert first == {record.key for record in records if record.kind == "b"}
        assert acknowledged - {""} <= first
        assert all(len(r.value) == int(r.key) % 3000 for r in records if r.kind == "a")
    assert len(acknowledged) > ROUNDS
