"""Where the faults of a run are made: the card's processes, places and sockets, from outside.

What an injector needs to know it reads from /proc and from files, never from the daemon, which
may be dead, stopped or out of descriptors just then.
"""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hal.errors import HalError
from hal.local.client import KeeperControl
from tests.process.fault_disk import SmallDisks
from tests.process.fault_runtime import FlakyRuntime
from tests.process.local_card import LocalCard
from tools.demo import observe, observe_card
from tools.demo.observe_card import DAEMON, CardProcess

KEEPER_PATIENCE_S = 2.0  # one that is stopped just now is left alone
LINKS = ("mc", "agent")
LIVES = 3  # of a daemon, whose end its supervisor may take for a fault of its own
MINUTE_S = 62.0


def _nothing() -> None:
    pass


def _yes() -> bool:
    return True


@dataclass(slots=True, kw_only=True)
class Injection:
    """A fault that was made. `heal` is idempotent; `seen` is asked right before it: did the fault
    have any effect at all? One that had none does not count."""

    text: str
    lasts_s: float = 0.0
    heal: Callable[[], None] = _nothing
    seen: Callable[[], bool] = _yes


class Site:
    """One card and what it stands on."""

    def __init__(
        self, card: LocalCard, rng: random.Random, disks: SmallDisks, runtime: FlakyRuntime
    ) -> None:
        self.card, self.rng, self.disks, self.runtime = card, rng, disks, runtime
        self._lives_s: deque[float] = deque()
        self.children: list[subprocess.Popen[str]] = []  # ended and reaped by `close`
        self._owed: list[tuple[str, dict[str, Any]]] = []  # what the keeper has still to be told
        self.cnms = sorted(card.cnms())
        self.slots = {cnm: row["slot"] for cnm, row in card.cnms().items()}

    # --- processes ---

    def one(self, module: str) -> CardProcess | None:
        """A process of the stack, drawn among those of its kind."""
        rows = [row for row in observe_card.card_processes(self.card.run) if row.module == module]
        rows.sort(key=lambda row: (row.cnm, row.start_ticks))
        return self.rng.choice(rows) if rows else None

    def an_instance(self) -> observe.Seen | None:
        """The first process of an instance that runs."""
        first: dict[str, observe.Seen] = {}
        for seen in sorted(self.card.mine(), key=lambda seen: (seen.start_ticks, seen.pid)):
            first.setdefault(seen.instance, seen)
        return first[self.rng.choice(sorted(first))] if first else None

    def daemon_ready(self) -> bool:
        """Its supervisor has said so. Whoever dies before that is suspected of a fault of its
        own, and five of those in a minute are safe mode."""
        rows = [row for row in observe_card.card_processes(self.card.run) if row.module == DAEMON]
        try:
            log = (self.card.run / "supervisor.log").read_text(errors="replace")
        except OSError:
            return False
        return len(rows) == 1 and f"the daemon, process {rows[0].pid}, is ready" in log

    def may_cost_a_life(self) -> bool:
        """At most `LIVES` such faults in a minute; asking counts."""
        now_s = time.monotonic()
        while self._lives_s and now_s - self._lives_s[0] > MINUTE_S:
            self._lives_s.popleft()
        if len(self._lives_s) >= LIVES:
            return False
        self._lives_s.append(now_s)
        return True

    def wait_for_start(self) -> None:
        """Until a daemon is there that is not ready yet, or it is too late for that."""
        for _ in range(100):
            rows = observe_card.card_processes(self.card.run)
            if any(row.module == DAEMON for row in rows):
                return
            time.sleep(0.005)

    def up_again(self) -> None:
        """`apf up`, in the background: it waits for a card that may be under fire."""
        self.children.append(self.card.start("up", "--board", self.card.board))

    # --- the keeper ---

    @contextmanager
    def keeper(self) -> Iterator[KeeperControl | None]:
        """Its socket, or None while it is dead, stopped, or turns us away."""
        with contextlib.ExitStack() as stack:
            try:
                control = KeeperControl(self.card.run, timeout_s=KEEPER_PATIENCE_S)
                stack.callback(control.close)
            except (HalError, OSError):
                yield None
                return
            yield control

    def ask_keeper(self, op: str, **words: Any) -> dict[str, Any] | None:
        """One request's result; None when there was none."""
        with self.keeper() as control:
            if control is None:
                return None
            try:
                return dict(control.call(op, **words))
            except (HalError, OSError):
                return None

    def heal_later(self, op: str, **words: Any) -> None:
        """Tell the keeper now, or as soon as it listens. One that has died has forgotten it."""
        if self.ask_keeper(op, **words) is None:
            self._owed.append((op, words))

    def heal_links(self, cnm: str) -> None:
        self.heal_later("fault", slot=self.slots[cnm])

    def touched_bytes(self, cnm: str, counter: str) -> int | None:
        """One counter of the relays of a module's lines, of all of them together."""
        status = self.ask_keeper("status", slot=self.slots[cnm])
        if status is None:
            return None
        links = status["slots"][0]["links"] or []
        ways = (counters for link in links for counters in link["counters"].values())
        return sum(counters.get(counter, 0) for counters in ways)

    def pay(self) -> bool:
        """Everything that the keeper could not be told has been told it now."""
        owed, self._owed = self._owed, []
        for op, words in owed:
            self.heal_later(op, **words)
        return not self._owed

    def close(self) -> None:
        for child in self.children:
            child.communicate(timeout=60)


# --- signals, to the process that was meant and no other ---


class Grip:
    """A process held by pidfd: a pid that is used again is never hit."""

    def __init__(self, pid: int, start_ticks: int) -> None:
        """Raises ProcessLookupError when it is gone."""
        self.pid, self._ticks = pid, start_ticks
        self._fd = os.pidfd_open(pid)
        if observe.start_ticks(pid) != start_ticks:
            os.close(self._fd)
            raise ProcessLookupError(pid)

    def send(self, number: signal.Signals) -> None:
        """Raises ProcessLookupError when it is gone."""
        signal.pidfd_send_signal(self._fd, number)

    @property
    def state(self) -> str:
        """The letter of /proc/PID/stat, "" when it is gone."""
        try:
            text = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return ""
        gone = observe.start_ticks(self.pid) != self._ticks
        return "" if gone else text.rpartition(")")[2].split()[0]

    def close(self) -> None:
        """Twice is fine."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def kill(pid: int, start_ticks: int, what: str) -> Injection | None:
    """SIGKILL; None when it was gone already."""
    try:
        grip = Grip(pid, start_ticks)
    except OSError:
        return None
    try:
        grip.send(signal.SIGKILL)
    except ProcessLookupError:
        return None
    finally:
        grip.close()
    return Injection(text=f"{what} (pid {pid}) killed")


def stop(pid: int, start_ticks: int, what: str, lasts_s: float) -> Injection | None:
    """SIGSTOP, and SIGCONT when it is healed; None when it was gone already."""
    try:
        grip = Grip(pid, start_ticks)
    except OSError:
        return None
    healed = False

    def go_on() -> None:
        nonlocal healed
        if not healed:
            healed = True
            with contextlib.suppress(ProcessLookupError):
                grip.send(signal.SIGCONT)
            grip.close()

    with contextlib.suppress(ProcessLookupError):
        grip.send(signal.SIGSTOP)
    return Injection(
        text=f"{what} (pid {pid}) stopped for {lasts_s:.2f} s",
        lasts_s=lasts_s,
        heal=go_on,
        seen=lambda: grip.state in ("T", ""),  # or killed meanwhile, by whoever missed it
    )


def descendants(pid: int) -> set[int]:
    """All that has come from a process, as far as its parents live."""
    children: dict[int, list[int]] = {}
    for each in observe.pids():
        children.setdefault(observe.parent_of(each), []).append(each)
    found: set[int] = set()
    todo = [pid]
    while todo:
        fresh = set(children.get(todo.pop(), ())) - found
        found |= fresh
        todo += fresh
    return found
