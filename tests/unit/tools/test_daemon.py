"""Stopping the card from outside: only who holds its pid file's lock is signalled."""

import os
import signal
import subprocess
import sys

import pytest

from tools.daemon import live_owners, log_tail, start_daemon, stop_daemon
from tools.errors import BadUsage, CheckFailed
from tools.paths import Places, find_places

pytestmark = pytest.mark.process

HOLDER = """
import fcntl, os, signal, sys, time
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(fd, fcntl.LOCK_EX)
os.write(fd, f"{os.getpid()}\\n".encode())
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def places(tmp_path):
    return Places(run=tmp_path, state=tmp_path / "state")


@pytest.fixture
def holder(places):
    children = []

    def start(name, mood="good"):
        argv = [sys.executable, "-c", HOLDER, str(places.run / f"{name}.pid"), mood]
        child = subprocess.Popen(argv, stdout=subprocess.PIPE)
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        return child

    yield start
    for child in children:
        child.kill()
        child.wait()
        child.stdout.close()


def test_a_dead_daemons_supervisor_is_stopped_by_its_pid_file(holder, places):
    child = holder("supervisor")
    assert live_owners(places) == {"supervisor": child.pid}
    assert stop_daemon(places, timeout_ms=10_000)
    assert child.wait() == -signal.SIGTERM
    assert live_owners(places) == {}


def test_a_supervisor_that_hears_nothing_is_killed(holder, places):
    child = holder("supervisor", "deaf")
    assert stop_daemon(places, timeout_ms=1000)
    assert child.wait() == -signal.SIGKILL


def test_a_keeper_that_was_left_alone_is_stopped_too(holder, places):
    child = holder("keeper")
    assert stop_daemon(places, timeout_ms=10_000)
    assert child.wait() == -signal.SIGTERM


def test_a_pid_file_that_nobody_holds_names_a_stranger(places):
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        (places.run / "supervisor.pid").write_text(f"{stranger.pid}\n")
        assert stop_daemon(places, timeout_ms=2000) is False
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_supervisor_that_ends_at_once_is_reported_with_its_log(places):
    with pytest.raises(CheckFailed) as failed:
        start_daemon(
            places, "no-such-board", foreground=False, timeout_ms=20_000, say=lambda text: None
        )
    assert failed.value.code == "daemon_ended"
    assert "no-such-board" in failed.value.text


def test_a_log_that_is_not_there_is_said(places):
    assert "no log" in log_tail(places)


def test_places_follow_options_variables_and_defaults(tmp_path):
    home = {"XDG_RUNTIME_DIR": "/run/user/7", "XDG_STATE_HOME": "/home/x/state"}
    assert find_places(env={}, uid=0) == Places(
        run=find_places(run="/run/apf", state="/", env={}).run,
        state=find_places(run="/", state="/var/lib/apf", env={}).state,
    )
    assert str(find_places(env=home, uid=7).run) == "/run/user/7/apf"
    assert str(find_places(env=home, uid=7).state) == "/home/x/state/apf"
    assert str(find_places(env={**home, "APF_RUN": "/x"}, uid=7).run) == "/x"
    assert str(find_places(run="/y", env={"APF_RUN": "/x"}, uid=0).run) == "/y"
    with pytest.raises(BadUsage, match="XDG_RUNTIME_DIR"):
        find_places(env={}, uid=7)
    assert os.path.isabs(find_places(run="rel", env={}, uid=0).run)
