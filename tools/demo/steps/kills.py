"""`restart`: a component is killed. `agent killed`, `daemon killed`: what runs does not notice."""

import os
import signal
from typing import Final

from tools.demo import observe_card
from tools.demo.context import SHOP, Context
from tools.demo.errors import hold
from tools.demo.runner import Proofs
from tools.demo.sampler import first_pids
from tools.demo.steps.bring_up import the_one
from tools.errors import ToolError

LEDGER: Final = f"{SHOP}/ledger/0"
INFER: Final = f"{SHOP}/infer/0"
AFTER: Final = "after"


def component_killed(context: Context) -> Proofs:
    """Its restart policy brings it back, on the same CNM, as one new process."""
    old = context.rows()[INFER]
    sampler = context.sampler()
    sampler.look()
    timer = context.timer()
    os.kill(old.pid, signal.SIGKILL)

    def again() -> bool:
        return bool(first_pids(sampler.look().get(INFER, {})) - {old.pid})

    context.wait(f"{INFER} as another process", again, every_ms=5)
    took_ms = timer.ms
    new = context.wait_up([INFER], look=sampler.look)[INFER]
    hold(new.cnm == old.cnm, f"{INFER} is on {new.cnm} now, not on {old.cnm}")
    yield f"kill -9 {old.pid} ({INFER}); process {new.pid} after {took_ms} ms, still on {new.cnm}"
    yield sampler.words()


def agent_killed(context: Context) -> Proofs:
    """The agent of the ledger's CNM: its log is read through that agent."""
    cnm = context.rows()[LEDGER].cnm
    before = context.alive()
    old = observe_card.by_cnm(context.demo.run, observe_card.AGENT)[cnm]
    timer = context.timer()
    os.kill(old.pid, signal.SIGKILL)

    def another() -> observe_card.CardProcess | None:
        found = observe_card.by_cnm(context.demo.run, observe_card.AGENT).get(cnm)
        return found if found is not None and found.pid != old.pid else None

    new = context.wait(f"another agent of {cnm}", another)
    yield f"kill -9 {old.pid} (agent of {cnm}); agent {new.pid} after {timer.ms} ms"
    yield _log_grows(context)
    yield untouched(context, before)


def daemon_killed(context: Context) -> Proofs:
    """Managed again by another daemon; every process is the one that it was."""
    before = context.alive()
    epoch = int(context.apf.ask("status")["epoch"])
    old = the_one(context, observe_card.DAEMON)
    timer = context.timer()
    os.kill(old.pid, signal.SIGKILL)
    lease_ms = context.board.timing.lease_ms

    def managed() -> bool:
        now = context.alive()
        lost = [name for name in before if now.get(name) != before[name]]
        hold(
            not lost,
            f"{', '.join(lost)} changed {timer.ms} ms after the daemon was killed (a lease lasts "
            f"{lease_ms} ms)",
        )
        try:
            status = context.apf.ask("status")
            cnms = context.apf.cnms()
        except ToolError:
            return False
        return status["epoch"] > epoch and all(c["state"] == "LEASED" for c in cnms.values())

    context.wait("another daemon that grants every lease", managed)
    new = the_one(context, observe_card.DAEMON)
    hold(new.pid != old.pid, "there is no other daemon process in /proc")
    yield f"kill -9 {old.pid}; daemon {new.pid}, epoch {epoch + 1}, all leased after {timer.ms} ms"
    context.wait_up(context.services())
    yield untouched(context, before)
    file = str(context.compose("hello"))
    context.apf.call("submit", file, "--name", AFTER, timeout_ms=context.patience_ms)
    row = context.wait_up([f"{AFTER}/hello/0"], AFTER)[f"{AFTER}/hello/0"]
    yield f"another workload runs: process {row.pid} on {row.cnm}"
    context.apf.call("rm", AFTER, "--wait", timeout_ms=context.patience_ms)


def untouched(context: Context, before: dict[str, dict[int, int]]) -> str:
    """The same pids with the same start times. Raises StepFailed."""
    now = context.alive()
    changed = [name for name in before if now.get(name) != before[name]]
    hold(not changed, f"{', '.join(changed)}: other processes than before")
    context.agree(context.rows())
    return f"the {len(before)} instances are the same processes, by pid and start time"


def _log_grows(context: Context) -> str:
    """The new agent serves: more of the ledger's log can be read."""

    def length() -> int:
        try:
            return len(context.apf.log(LEDGER))
        except ToolError:
            return 0  # nobody serves it at the moment

    seen = context.wait("the ledger's log through the new agent", length)
    context.wait("more of the ledger's log", lambda: length() > seen)
    return "the log of the ledger is served again, and grows"
