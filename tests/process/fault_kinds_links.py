"""Faults of what lies between the card and its modules: lines and windows."""

import contextlib
import mmap
import os
from typing import Any, Final

from hal.errors import HalError
from tests.process.fault_kind import kind
from tests.process.fault_site import LINKS, Injection, Site
from tests.process.fault_tty import hang_up

HEADER_BYTES: Final = 4096  # of a half of a window: header, indices and descriptors


def _link_fault(site: Site, effect: str, **faults: Any) -> Injection | None:
    """On one link of one module, or on both. `effect`: the relay's counter of what it touched."""
    cnm = site.rng.choice(site.cnms)
    link = site.rng.choice((*LINKS, None))
    where = {"slot": site.slots[cnm]} | ({"link": link} if link else {})
    before = site.touched_bytes(cnm, effect)
    if before is None:
        return None
    if site.ask_keeper("fault", **where, **faults) is None:
        site.heal_links(cnm)  # one that was stopped reads it when it goes on
        return None
    words = ", ".join(f"{name} {value}" for name, value in faults.items() if name != "seed")
    return Injection(
        text=f"{cnm}'s {link or 'links'}: {words}",
        lasts_s=site.rng.uniform(0.2, 2.2),
        heal=lambda: site.heal_links(cnm),
        seen=lambda: site.touched_bytes(cnm, effect) != before,
    )


@kind("link cut", weight=2)
def _link_cut(site: Site) -> Injection | None:
    return _link_fault(site, "cut_bytes", cut=True)


@kind("link noisy", weight=2)
def _link_noisy(site: Site) -> Injection | None:
    """Bits turn over, bytes are lost and come twice."""
    rate = site.rng.choice((0.0005, 0.005, 0.05))
    name, effect = site.rng.choice(
        (("flip", "flipped_bytes"), ("drop", "dropped_bytes"), ("duplicate", "duplicated_bytes"))
    )
    return _link_fault(site, effect, **{name: rate, "seed": site.rng.randrange(1 << 32)})


@kind("link slow")
def _link_slow(site: Site) -> Injection | None:
    return _link_fault(site, "in_bytes", delay_ms=site.rng.choice((50, 300, 1500)))


@kind("line hung up", weight=2)
def _line_hung_up(site: Site) -> Injection | None:
    line = site.rng.choice(sorted((site.card.run / "tty").glob("*")) or [None])
    if line is None:
        return None
    try:
        hang_up(line)
    except OSError:  # the keeper has just gone, and its lines with it
        return None
    return Injection(text=f"{line.name} hung up")


@kind("window cut")
def _window_cut(site: Site) -> Injection | None:
    cnm = site.rng.choice(site.cnms)
    slot = site.slots[cnm]

    def heal() -> None:
        site.heal_later("window_cut", slot=slot, cut=False)

    if site.ask_keeper("window_cut", slot=slot, cut=True) is None:
        heal()  # one that was stopped reads it when it goes on
        return None
    return Injection(
        text=f"{cnm}'s window cut",
        lasts_s=site.rng.uniform(0.1, 2),
        heal=heal,
    )


@kind("window corrupt")
def _window_corrupt(site: Site) -> Injection | None:
    cnm = site.rng.choice(site.cnms)
    slot, seed = site.slots[cnm], site.rng.randrange(1 << 32)

    def heal() -> None:
        site.heal_later("window_corrupt", slot=slot, flips=0, seed=0)

    if site.ask_keeper("window_corrupt", slot=slot, flips=64, seed=seed) is None:
        heal()
        return None
    return Injection(
        text=f"bits of {cnm}'s window turn over",
        lasts_s=site.rng.uniform(0.1, 2),
        heal=heal,
    )


@kind("window scribbled over")
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
