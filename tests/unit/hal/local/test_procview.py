"""A process may call itself anything; the keeper reads its pids all the same."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hal.linux.procstat import proc_stat
from hal.local import procview

COMM = Path("/proc/self/comm")


@pytest.fixture(params=[b"\xff\xfe", b"a) R 1 1", b"\x0bNSpid:\t1 2"], ids=repr)
def name(request: pytest.FixtureRequest) -> Iterator[bytes]:
    """The name of this process for the time of one test."""
    before = COMM.read_bytes()
    COMM.write_bytes(request.param)
    yield request.param
    COMM.write_bytes(before.rstrip(b"\n"))


def test_no_name_hides_or_forges_what_proc_says_of_a_process(name: bytes) -> None:
    pid = os.getpid()
    stat = proc_stat(pid)
    assert stat is not None
    assert os.fsencode(stat.name) == name
    assert (stat.ppid, stat.session) == (os.getppid(), os.getsid(0))
    assert stat.state in "RS"
    assert not stat.ending
    assert procview.ns_pids(pid)[0] == pid
    assert pid in procview.family(pid, adopted_by=os.getpid(), mark=("X_NOT_SET", "1"))


def test_a_process_that_is_not_there_has_no_stat() -> None:
    assert proc_stat(2**22 + 1) is None
    assert procview.ns_pids(2**22 + 1) == []
