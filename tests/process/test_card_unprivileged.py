"""A card of a user who is not root: no namespaces, no containers; processes, and the lease.

Judged by /proc, by a root who looks on. What it can't do it says; what it does it does right.
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.process.local_card import NOBODY, LocalCard, python_for_others, say
from tools.demo import observe

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
    pytest.mark.skipif(
        os.geteuid() == 0 and python_for_others() is None,
        reason="no interpreter with our packages that another user may run",
    ),
]

# Silent, so that nobody dies of a broken pipe: a worker in its session, a daemon in one of its own
# without its environment, and itself.
FAMILY = """
services:
  family:
    image: host
    command:
      - /bin/sh
      - -c
      - |
        sleep 987 &
        (env -i setsid /bin/sh -c "while :; do sleep 0.987; done" &)
        while :; do sleep 0.2; done
    cpus: 0.1
"""


class UserCard(LocalCard):
    """`apf` as user nobody runs it, in the places that XDG gives."""

    def __init__(self) -> None:
        super().__init__()
        found = python_for_others()
        assert found is not None
        self.python, env = found
        self.user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        self.env = env | {
            "HOME": str(self.place / "home"),
            "XDG_RUNTIME_DIR": str(self.place / "run"),
            "XDG_STATE_HOME": str(self.place / "state"),
            "NO_COLOR": "1",
        }
        self.place.chmod(0o755)
        for name in ("home", "run", "state"):
            (self.place / name).mkdir(mode=0o700)
            os.chown(self.place / name, NOBODY, NOBODY)
        self.run, self.state = self.place / "run/apf", self.place / "state/apf"
        self.workload = self.place.name.replace("_", "-")

    def up(self) -> "UserCard":
        self.apf("up", "--board", self.board)
        return self

    def close(self) -> None:
        mine = self.everybody()
        super().close()
        deadline_s = time.monotonic() + 5  # PID 1 here may be slow to reap what it inherits
        while (left := [pid for pid in mine if mine[pid] == observe.start_ticks(pid)]) and (
            time.monotonic() < deadline_s
        ):
            time.sleep(0.05)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left, f"`apf down` left processes {left}"

    def everybody(self) -> dict[int, int]:
        """All that descends from the card's own processes: pid -> start ticks."""
        try:
            found = {int((self.run / "supervisor.pid").read_text())}
        except (OSError, ValueError):
            return {}
        parents = {
            pid: parent_of(pid) for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
        }
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return {pid: ticks for pid in found if (ticks := observe.start_ticks(pid)) is not None}


def parent_of(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[1])


@pytest.fixture
def card() -> Iterator[UserCard]:
    card = UserCard()
    try:
        card.up()
        card.wait_leased()
        yield card
    finally:
        card.close()


def below(init_pid: int, card: UserCard) -> dict[int, int]:
    """An init's descendants but for its agent."""
    everybody = card.everybody()
    found = {init_pid}
    while more := {pid for pid in everybody if parent_of(pid) in found} - found:
        found |= more
    own = {pid for pid in found if b"firmware.cnm" in Path(f"/proc/{pid}/cmdline").read_bytes()}
    return {pid: everybody[pid] for pid in found - own}


def test_without_root_work_runs_as_the_user_and_the_fence_is_said_to_be_the_lease(
    card: UserCard,
) -> None:
    words = (card.run / "supervisor.log").read_text()
    assert "fence = lease" in words
    for cnm in card.cnms().values():
        assert cnm["fence"] == "lease"
        assert cnm["capacity"]["runtimes"] == ["process"]
        assert os.stat(f"/proc/{cnm['init_pid']}").st_uid == NOBODY
    card.submit(FAMILY, card.workload)
    row = next(iter(card.wait_running(f"{card.workload}/family/0").values()))
    assert row["runtime"] == "process"
    assert os.stat(f"/proc/{row['pid']}").st_uid == NOBODY
    # and what needs containers is refused in words
    card.import_busybox()
    refused = card.submit("services: {web: {image: busybox}}", "web", 3)["error"]
    assert refused["code"] == "never_fits"
    assert "oci" in refused["text"]


def test_an_init_that_dies_takes_all_that_it_started_along_before_it_runs_elsewhere(
    card: UserCard,
) -> None:
    name = f"{card.workload}/family/0"
    card.submit(FAMILY, card.workload)
    row: dict[str, Any] = card.wait_running(name)[name]
    init_pid = card.cnms()[row["cnm"]]["init_pid"]
    old = card.wait("all of it is there", lambda: lasting(init_pid, card), every_s=0.02)
    killed_s = time.monotonic()
    os.kill(init_pid, signal.SIGKILL)

    def elsewhere() -> bool:
        here = {seen.session for seen in observe.processes() if seen.instance == name}
        left = [pid for pid, ticks in old.items() if observe.start_ticks(pid) == ticks]
        assert not (here - {row["pid"]} and left), f"sessions {here} run beside {left}"
        return bool(here - {row["pid"]})

    card.wait("it runs elsewhere", elsewhere, every_s=0.005)
    took_ms = 1000 * (time.monotonic() - killed_s)
    say(f"\ninit killed without root -> running again: {took_ms:.0f} ms")
    assert card.wait_running(name)[name]["cnm"] != row["cnm"]
    card.wait_leased()


def lasting(init_pid: int, card: UserCard) -> dict[int, int] | None:
    """What of the family lasts: itself, its worker, its daemon; None until all three are there."""
    short = (b"sleep\x000.2\0", b"sleep\x000.987\0")
    found = {p: t for p, t in below(init_pid, card).items() if cmdline(p) not in (b"", *short)}
    words = b" ".join(map(cmdline, found))
    return found if len(found) == 3 and b"sleep\x00987" in words and b"0.987" in words else None


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
