"""Faults of room, and clients that take it: disks, descriptors, the control socket."""

import contextlib
import os
import resource
from typing import Final

from tests.process import fault_clients as clients
from tests.process.fault_kind import kind
from tests.process.fault_site import Injection, Site, descendants
from tools.demo import observe_card

NO_FILES: Final = 3  # below what every process has open: not one descriptor more
IDLE_CLIENTS: Final = 90  # of them 64 are kept
LONG_LINE: Final = b'{"jsonrpc":"2.0","id":1,"method":"' + b"m" * (10 << 20)
SENSELESS: Final = (b"\xff\x00\n", b"[" * 5000 + b"\n", b'{"jsonrpc": "2.0", "id": 1,\n', b"{}\n")


# --- disks and descriptors ---


@kind("card's disk full", weight=1.5, rest_s=4)
def _disk_full(site: Site) -> Injection | None:
    disk = site.disks.card
    disk.fill()
    return Injection(
        text="no room on the card's disk",
        lasts_s=site.rng.uniform(0.3, 3),
        heal=disk.free,
        seen=lambda: os.statvfs(disk.place).f_bavail * 4096 < 1 << 20,
    )


@kind("modules' disk full", rest_s=4)
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
    """Of one that has come as far as its loop: Python can't even begin without descriptors."""
    row = site.one(module)
    if row is None or not any("eventpoll" in file for file in observe_card.open_files(row.pid)):
        return None
    try:
        soft, hard = resource.prlimit(row.pid, resource.RLIMIT_NOFILE)
        if soft == NO_FILES:
            return None  # another fault of this kind lasts, and knows what to go back to
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


@kind("daemon out of descriptors", weight=1.5)
def _daemon_no_descriptors(site: Site) -> Injection | None:
    """One that is ready: Python can't even begin without descriptors."""
    if not site.daemon_ready():
        return None
    return _no_descriptors(site, observe_card.DAEMON, "daemon")


@kind("agent out of descriptors")
def _agent_no_descriptors(site: Site) -> Injection | None:
    return _no_descriptors(site, observe_card.AGENT, "agent")


@kind("init out of descriptors")
def _init_no_descriptors(site: Site) -> Injection | None:
    return _no_descriptors(site, observe_card.INIT, "init")


@kind("keeper out of descriptors")
def _keeper_no_descriptors(site: Site) -> Injection | None:
    return _no_descriptors(site, observe_card.KEEPER, "keeper")


# --- the control socket ---


@kind("idle clients", rest_s=5)
def _idle_clients(site: Site) -> Injection | None:
    crowd = clients.Crowd(site.card.run, IDLE_CLIENTS)
    return Injection(
        text=f"{len(crowd.socks)} idle clients",
        lasts_s=site.rng.uniform(0.2, 1.5),
        heal=crowd.close,
        seen=lambda: bool(crowd.socks),
    )


@kind("slow client")
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


@kind("deaf subscriber")
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


@kind("senseless request", weight=1.5)
def _senseless(site: Site) -> Injection | None:
    data = site.rng.choice((LONG_LINE, *SENSELESS, site.rng.randbytes(3000) + b"\n"))
    try:
        told = clients.send_until_told(site.card.run, data)
    except OSError:
        return None
    good = all("error" in answer for answer in told)
    assert good, f"{data[:40]!r} was answered with {told}"
    return Injection(text=f"{len(data)} senseless bytes on the socket", seen=lambda: bool(told))


@kind("stranger", weight=0.5)
def _stranger(site: Site) -> Injection | None:
    """Another user, and the way to the socket is open."""
    try:
        with clients.open_to_all(site.card.run):
            told = clients.stranger(site.card.run)
    except OSError:
        return None
    assert "result" not in told, f"a stranger may shut the card down: {told}"
    return Injection(text=f"another user is told {told[:60]!r}")
