"""Faults of processes: of the stack, and of the instances that it runs."""

from pathlib import Path
from typing import Final

from tests.process.fault_kind import kind
from tests.process.fault_site import Injection, Site, kill, stop
from tests.process.fault_traffic import HUNGRY
from tools.demo import observe, observe_card

HANG_S: Final = (2.6, 3.2)  # longer than the daemon's watchdog (2 s)


def _kill_one(site: Site, module: str, what: str) -> Injection | None:
    row = site.one(module)
    return kill(row.pid, row.start_ticks, f"{what} {row.cnm}".strip()) if row else None


def _stop_one(site: Site, module: str, what: str, low_s: float, high_s: float) -> Injection | None:
    row = site.one(module)
    if row is None:
        return None
    lasts_s = site.rng.uniform(low_s, high_s)
    return stop(row.pid, row.start_ticks, f"{what} {row.cnm}".strip(), lasts_s)


@kind("daemon killed", weight=3, rest_s=1)
def _daemon_killed(site: Site) -> Injection | None:
    """One that is ready: a death at the start counts as the daemon's own fault."""
    return _kill_one(site, observe_card.DAEMON, "daemon") if site.daemon_ready() else None


@kind("daemon killed while it starts", rest_s=20)
def _daemon_killed_early(site: Site) -> Injection | None:
    if not site.may_cost_a_life():
        return None
    if site.daemon_ready():
        _kill_one(site, observe_card.DAEMON, "daemon")
        site.wait_for_start()
    return _kill_one(site, observe_card.DAEMON, "daemon that was starting")


@kind("daemon stopped", weight=2, rest_s=2)
def _daemon_stopped(site: Site) -> Injection | None:
    return _stop_one(site, observe_card.DAEMON, "daemon", 0.05, 0.8)


@kind("daemon hung until its watchdog", rest_s=20)
def _daemon_hung(site: Site) -> Injection | None:
    if not site.may_cost_a_life():
        return None
    return _stop_one(site, observe_card.DAEMON, "daemon", *HANG_S)


@kind("agent killed", weight=3)
def _agent_killed(site: Site) -> Injection | None:
    return _kill_one(site, observe_card.AGENT, "agent")


@kind("agent stopped", weight=2)
def _agent_stopped(site: Site) -> Injection | None:
    return _stop_one(site, observe_card.AGENT, "agent", 0.05, 3.0)


@kind("init killed", weight=2, rest_s=3)
def _init_killed(site: Site) -> Injection | None:
    return _kill_one(site, observe_card.INIT, "init")


@kind("init stopped", weight=2, rest_s=2)
def _init_stopped(site: Site) -> Injection | None:
    return _stop_one(site, observe_card.INIT, "init", 0.05, 2.0)


@kind("keeper killed", weight=0.5, rest_s=30)
def _keeper_killed(site: Site) -> Injection | None:
    return _kill_one(site, observe_card.KEEPER, "keeper")


@kind("keeper stopped", rest_s=5)
def _keeper_stopped(site: Site) -> Injection | None:
    return _stop_one(site, observe_card.KEEPER, "keeper", 0.05, 1.5)


@kind("supervisor killed", weight=0.5, rest_s=20)
def _supervisor_killed(site: Site) -> Injection | None:
    """Somebody (systemd, on a card) brings the card up again a moment later."""
    made = _kill_one(site, observe_card.SUPERVISOR, "supervisor")
    if made is not None:
        made.lasts_s, made.heal = site.rng.uniform(0.1, 1.5), site.up_again
    return made


@kind("supervisor stopped", weight=0.5)
def _supervisor_stopped(site: Site) -> Injection | None:
    return _stop_one(site, observe_card.SUPERVISOR, "supervisor", 0.05, 1.5)


# --- instances ---


@kind("instance killed", weight=2)
def _instance_killed(site: Site) -> Injection | None:
    seen = site.an_instance()
    return kill(seen.pid, seen.start_ticks, seen.instance) if seen else None


@kind("instance stopped")
def _instance_stopped(site: Site) -> Injection | None:
    seen = site.an_instance()
    lasts_s = site.rng.uniform(0.1, 1.5)
    return stop(seen.pid, seen.start_ticks, seen.instance, lasts_s) if seen else None


@kind("instance out of memory", rest_s=3)
def _instance_hungry(site: Site) -> Injection | None:
    """It asks for more than its cgroup allows: the kernel kills it."""
    row = site.card.first_processes().get(HUNGRY)
    if row is None:
        return None
    pid, ticks = row
    try:
        Path(f"/proc/{pid}/root/tmp/eat").touch()
    except OSError:
        return None
    return Injection(
        text=f"{HUNGRY} (pid {pid}) eats",
        lasts_s=1.5,
        seen=lambda: observe.start_ticks(pid) != ticks,
    )


@kind("runtime fails", weight=1.5)
def _runtime_fails(site: Site) -> Injection | None:
    percent, before = site.rng.choice((20, 50, 100)), site.runtime.failures
    site.runtime.fail(percent)
    return Injection(
        text=f"{percent} % of the calls of runc fail",
        lasts_s=site.rng.uniform(0.5, 3),
        heal=lambda: site.runtime.fail(0),
        seen=lambda: site.runtime.failures > before,
    )
