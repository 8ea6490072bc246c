"""The faults of a run on real processes, by name. An injector draws from `site.rng` and gives an
`Injection`, or None when there is nothing to break just now.

`rest_s`: at least so long between two of a kind. The supervisor gives a card up after five deaths
of its keeper in a minute, and goes to safe mode after five of a daemon that nobody outside has
killed (firmware/supervision.py): those are promises of their own, with tests of their own.
"""

import contextlib
import mmap
import os
import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from hal.errors import HalError
from tests.process import fault_clients as clients
from tests.process.fault_site import LINKS, Injection, Site, descendants, kill, stop
from tests.process.fault_traffic import HUNGRY
from tests.process.fault_tty import hang_up
from tools.demo import observe, observe_card

HANG_S: Final = (2.6, 3.2)  # longer than the daemon's watchdog (2 s)
NO_FILES: Final = 3  # below what every process has open: not one descriptor more
HEADER_BYTES: Final = 4096  # of a half of a window: header, indices and descriptors
IDLE_CLIENTS: Final = 90  # of them 64 are kept
LONG_LINE: Final = b'{"jsonrpc":"2.0","id":1,"method":"' + b"m" * (10 << 20)
SENSELESS: Final = (b"\xff\x00\n", b"[" * 5000 + b"\n", b'{"jsonrpc": "2.0", "id": 1,\n', b"{}\n")

Inject: TypeAlias = Callable[[Site], Injection | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    name: str
    weight: float
    rest_s: float
    inject: Inject


_KINDS: dict[str, Kind] = {}
KINDS: Final[Mapping[str, Kind]] = MappingProxyType(_KINDS)


def _kind(name: str, *, weight: float = 1.0, rest_s: float = 0.0) -> Callable[[Inject], Inject]:
    def keep(inject: Inject) -> Inject:
        _KINDS[name] = Kind(name=name, weight=weight, rest_s=rest_s, inject=inject)
        return inject

    return keep


# --- processes ---


def _kill_one(site: Site, module: str, what: str) -> Injection | None:
    row = site.one(module)
    return kill(row.pid, row.start_ticks, f"{what} {row.cnm}".strip()) if row else None


def _stop_one(site: Site, module: str, what: str, low_s: float, high_s: float) -> Injection | None:
    row = site.one(module)
    if row is None:
        return None
    lasts_s = site.rng.uniform(low_s, high_s)
    return stop(row.pid, row.start_ticks, f"{what} {row.cnm}".strip(), lasts_s)


@_kind("daemon killed", weight=3, rest_s=1)
def _daemon_killed(site: Site) -> Injection | None:
    """One that is ready: a death at the start counts as the daemon's own fault."""
    return _kill_one(site, observe_card.DAEMON, "daemon") if site.daemon_ready() else None


@_kind("daemon killed while it starts", rest_s=20)
def _daemon_killed_early(site: Site) -> Injection | None:
    if not site.may_cost_a_life():
        return None
    if site.daemon_ready():
        _kill_one(site, observe_card.DAEMON, "daemon")
        site.wait_for_start()
    return _kill_one(site, observe_card.DAEMON, "daemon that was starting")


@_kind("daemon stopped", weight=2, rest_s=2)
def _daemon_stopped(site: Site) -> Injection | None:
    return _stop_one(site, observe_card.DAEMON, "daemon", 0.05, 0.8)


@_kind("daemon hung until its watchdog", rest_s=20)
def _daemon_hung(site: Site) -> Injection | None:
    if not site.may_cost_a_life():
        return None
    return _stop_one(site, observe_card.DAEMON, "daemon", *HANG_S)


@_kind("agent killed", weight=3)
def _agent_killed(site: Site) -> Injection | None:
    return _kill_one(site, observe_card.AGENT, "agent")


@_kind("agent stopped", weight=2)
def _agent_stopped(site: Site) -> Injection | None:
    return _stop_one(site, observe_card.AGENT, "agent", 0.05, 3.0)


@_kind("init killed", weight=2, rest_s=3)
def _init_killed(site: Site) -> Injection | None:
    return _kill_one(site, observe_card.INIT, "init")


@_kind("init stopped", weight=2, rest_s=2)
def _init_stopped(site: Site) -> Injection | None:
    return _stop_one(site, observe_card.INIT, "init", 0.05, 2.0)


@_kind("keeper killed", weight=0.5, rest_s=30)
def _keeper_killed(site: Site) -> Injection | None:
    return _kill_one(site, observe_card.KEEPER, "keeper")


@_kind("keeper stopped", rest_s=5)
def _keeper_stopped(site: Site) -> Injection | None:
    return _stop_one(site, observe_card.KEEPER, "keeper", 0.05, 1.5)


@_kind("supervisor killed", weight=0.5, rest_s=20)
def _supervisor_killed(site: Site) -> Injection | None:
    """Somebody (systemd, on a card) brings the card up again a moment later."""
    made = _kill_one(site, observe_card.SUPERVISOR, "supervisor")
    if made is not None:
        made.lasts_s, made.heal = site.rng.uniform(0.1, 1.5), site.up_again
    return made


@_kind("supervisor stopped", weight=0.5)
def _supervisor_stopped(site: Site) -> Injection | None:
    return _stop_one(site, observe_card.SUPERVISOR, "supervisor", 0.05, 1.5)


# --- instances ---


@_kind("instance killed", weight=2)
def _instance_killed(site: Site) -> Injection | None:
    seen = site.an_instance()
    return kill(seen.pid, seen.start_ticks, seen.instance) if seen else None


@_kind("instance stopped")
def _instance_stopped(site: Site) -> Injection | None:
    seen = site.an_instance()
    lasts_s = site.rng.uniform(0.1, 1.5)
    return stop(seen.pid, seen.start_ticks, seen.instance, lasts_s) if seen else None


@_kind("instance out of memory", rest_s=3)
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


@_kind("runtime fails", weight=1.5)
def _runtime_fails(site: Site) -> Injection | None:
    percent, before = site.rng.choice((20, 50, 100)), site.runtime.failures
    site.runtime.fail(percent)
    return Injection(
        text=f"{percent} % of the calls of runc fail",
        lasts_s=site.rng.uniform(0.5, 3),
        heal=lambda: site.runtime.fail(0),
        seen=lambda: site.runtime.failures > before,
    )


# --- links and windows ---


def _link_fault(site: Site, effect: str, **faults: Any) -> Injection | None:
    """On one link of one module, or on both. `effect`: the relay's counter of what it touched."""
    cnm = site.rng.choice(site.cnms)
    link = site.rng.choice((*LINKS, None))
    where = {"slot": site.slots[cnm]} | ({"link": link} if link else {})
    before = site.touched_bytes(cnm, effect)
    if before is None or site.ask_keeper("fault", **where, **faults) is None:
        return None
    words = ", ".join(f"{name} {value}" for name, value in faults.items() if name != "seed")
    return Injection(
        text=f"{cnm}'s {link or 'links'}: {words}",
        lasts_s=site.rng.uniform(0.2, 2.2),
        heal=lambda: site.heal_links(cnm),
        seen=lambda: site.touched_bytes(cnm, effect) != before,
    )


@_kind("link cut", weight=2)
def _link_cut(site: Site) -> Injection | None:
    return _link_fault(site, "cut_bytes", cut=True)


@_kind("link noisy", weight=2)
def _link_noisy(site: Site) -> Injection | None:
    """Bits turn over, bytes are lost and come twice."""
    rate = site.rng.choice((0.0005, 0.005, 0.05))
    name, effect = site.rng.choice(
        (("flip", "flipped_bytes"), ("drop", "dropped_bytes"), ("duplicate", "duplicated_bytes"))
    )
    return _link_fault(site, effect, **{name: rate, "seed": site.rng.randrange(1 << 32)})


@_kind("link slow")
def _link_slow(site: Site) -> Injection | None:
    return _link_fault(site, "in_bytes", delay_ms=site.rng.choice((50, 300, 1500)))


@_kind("line hung up", weight=2)
def _line_hung_up(site: Site) -> Injection | None:
    line = site.rng.choice(sorted((site.card.run / "tty").glob("*")) or [None])
    if line is None:
        return None
    try:
        hang_up(line)
    except OSError:  # the keeper has just gone, and its lines with it
        return None
    return Injection(text=f"{line.name} hung up")


@_kind("window cut")
def _window_cut(site: Site) -> Injection | None:
    cnm = site.rng.choice(site.cnms)
    slot = site.slots[cnm]
    if site.ask_keeper("window_cut", slot=slot, cut=True) is None:
        return None
    return Injection(
        text=f"{cnm}'s window cut",
        lasts_s=site.rng.uniform(0.1, 2),
        heal=lambda: site.heal_later("window_cut", slot=slot, cut=False),
    )


@_kind("window corrupt")
def _window_corrupt(site: Site) -> Injection | None:
    cnm = site.rng.choice(site.cnms)
    slot, seed = site.slots[cnm], site.rng.randrange(1 << 32)
    if site.ask_keeper("window_corrupt", slot=slot, flips=64, seed=seed) is None:
        return None
    return Injection(
        text=f"bits of {cnm}'s window turn over",
        lasts_s=site.rng.uniform(0.1, 2),
        heal=lambda: site.heal_later("window_corrupt", slot=slot, flips=0, seed=0),
    )


@_kind("window scribbled over")
def _window_scribbled(site: Site) -> Injection | None:
    """The module's own half, header and descriptors: what only a mad peer would write there. And
    it tries to shrink the memory under the card's feet, which the seals refuse."""
    cnm = site.rng.choice(site.cnms)
    with site.keeper() as control:
        if control is None:
            return None
        try:
            reply = control.call_with_fds("window", slot=site.slots[cnm])
        except (HalError, OSError):
            return None
    try:
        memfd, to_card = reply.fds[0], reply.fds[1]
        half_bytes = int(str(reply.result["size_bytes"])) // 2
        shrunk = scribble(memfd, half_bytes, site.rng.randbytes(HEADER_BYTES))
        os.eventfd_write(to_card, 1)
    finally:
        for fd in reply.fds:
            os.close(fd)
    assert not shrunk, f"{cnm}'s window could be shrunk"
    return Injection(text=f"{cnm}'s half of its window scribbled over")


def scribble(memfd: int, half_bytes: int, data: bytes) -> bool:
    """Over the half that the CNM writes; True when the memory could be made smaller."""
    with mmap.mmap(memfd, half_bytes, offset=half_bytes) as half:
        half[: len(data)] = data
    with contextlib.suppress(PermissionError):
        os.ftruncate(memfd, half_bytes)
        return True
    return False


# --- room: disks, descriptors ---


@_kind("card's disk full", weight=1.5, rest_s=4)
def _disk_full(site: Site) -> Injection | None:
    disk = site.disks.card
    disk.fill()
    return Injection(
        text="no room on the card's disk",
        lasts_s=site.rng.uniform(0.3, 3),
        heal=disk.free,
        seen=lambda: os.statvfs(disk.place).f_bavail * 4096 < 1 << 20,
    )


@_kind("modules' disk full", rest_s=4)
def _stores_full(site: Site) -> Injection | None:
    disk = site.disks.modules
    disk.fill()
    return Injection(
        text="no room on the modules' disk",
        lasts_s=site.rng.uniform(0.3, 2),
        heal=disk.free,
        seen=lambda: os.statvfs(disk.place).f_bavail * 4096 < 1 << 20,
    )


def _no_descriptors(site: Site, module: str, what: str) -> Injection | None:
    row = site.one(module)
    if row is None:
        return None
    try:
        soft, hard = resource.prlimit(row.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(row.pid, resource.RLIMIT_NOFILE, (NO_FILES, hard))
    except OSError:
        return None

    def heal() -> None:
        """Its children too: what was started meanwhile has inherited the limit."""
        for pid in {row.pid, *descendants(row.pid)}:
            with contextlib.suppress(OSError):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))

    return Injection(
        text=f"{what} {row.cnm} (pid {row.pid}) may open nothing more",
        lasts_s=site.rng.uniform(0.3, 2),
        heal=heal,
    )


@_kind("daemon out of descriptors", weight=1.5)
def _daemon_no_descriptors(site: Site) -> Injection | None:
    """One that is ready: Python can't even begin without descriptors."""
    if not site.daemon_ready():
        return None
    return _no_descriptors(site, observe_card.DAEMON, "daemon")


@_kind("agent out of descriptors")
def _agent_no_descriptors(site: Site) -> Injection | None:
    return _no_descriptors(site, observe_card.AGENT, "agent")


@_kind("init out of descriptors")
def _init_no_descriptors(site: Site) -> Injection | None:
    return _no_descriptors(site, observe_card.INIT, "init")


@_kind("keeper out of descriptors")
def _keeper_no_descriptors(site: Site) -> Injection | None:
    return _no_descriptors(site, observe_card.KEEPER, "keeper")


# --- the control socket ---


@_kind("idle clients", rest_s=5)
def _idle_clients(site: Site) -> Injection | None:
    crowd = clients.Crowd(site.card.run, IDLE_CLIENTS)
    return Injection(
        text=f"{len(crowd.socks)} idle clients",
        lasts_s=site.rng.uniform(0.2, 1.5),
        heal=crowd.close,
        seen=lambda: bool(crowd.socks),
    )


@_kind("slow client")
def _slow_client(site: Site) -> Injection | None:
    try:
        loris = clients.Loris(site.card.run)
    except OSError:
        return None
    fed = loris.feed()
    return Injection(
        text="a client that sends a byte now and then",
        lasts_s=site.rng.uniform(0.5, 3),
        heal=loris.close,
        seen=lambda: fed,
    )


@_kind("deaf subscriber")
def _deaf_subscriber(site: Site) -> Injection | None:
    try:
        deaf = clients.DeafSubscriber(site.card.run)
    except OSError:
        return None
    taken = deaf.ask(400)
    return Injection(
        text=f"a subscriber that reads nothing and has asked {taken} times",
        lasts_s=site.rng.uniform(0.5, 3),
        heal=deaf.close,
        seen=lambda: taken > 0,
    )


@_kind("senseless request", weight=1.5)
def _senseless(site: Site) -> Injection | None:
    data = site.rng.choice((LONG_LINE, *SENSELESS, site.rng.randbytes(3000) + b"\n"))
    try:
        told = clients.send_until_told(site.card.run, data)
    except OSError:
        return None
    good = all("error" in answer for answer in told)
    assert good, f"{data[:40]!r} was answered with {told}"
    return Injection(text=f"{len(data)} senseless bytes on the socket", seen=lambda: bool(told))


@_kind("stranger", weight=0.5)
def _stranger(site: Site) -> Injection | None:
    """Another user, and the way to the socket is open."""
    try:
        with clients.open_to_all(site.card.run):
            told = clients.stranger(site.card.run)
    except OSError:
        return None
    assert "result" not in told, f"a stranger may shut the card down: {told}"
    return Injection(text=f"another user is told {told[:60]!r}")
