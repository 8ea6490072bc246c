"""S1 to S8: the card's disk, and what is on it. A full disk is also tried on the modules.

The card's power loss is the death of all that lives by it: the daemon, every module, and what the
disk had not synced.
"""

from collections.abc import Callable
from typing import Final

from firmware.journal import Change, Kind
from hal.mock.log_file import SECTOR_BYTES, write_log
from tools.sim.faults.evidence import cnm_of, drawn_module, works
from tools.sim.faults.types import SECOND, Fault, Injection, Site, injection, span_ns
from tools.sim.world import DAEMON, World

WRITES_MOST: Final = 40


def poke(site: Site, count: int = 1) -> bool:
    """Have the daemon write decisions that change nothing: a module that drains shall drain, and
    another one not. False when there is no daemon to ask."""
    world = site.world
    card = world.card_or_none
    if card is None or not card.ready or not works(world, DAEMON):
        return False
    for _ in range(count):
        cnm = site.rng.choice(list(card.inventory))
        world.begin("cnm.drain" if cnm.draining else "cnm.undrain", id=cnm.id)
    return True


def rewrite(site: Site, count: int) -> None:
    """Have the daemon write that many batches at once, of records as they stand. Where something
    is on its way already, a record may not be as it stands, and what is there will have to do."""
    journal = site.world.card.journal
    if journal.in_flight:
        poke(site, count)
        return
    # an estimate that could not be read at the start is on the disk, and nowhere else
    records = sorted(
        (kind, key)
        for kind, key in site.world.disk.journal.durable
        if kind != Kind.PROFILE or journal.get(Kind.PROFILE, key) is not None
    )
    for _ in range(count):
        kind, key = site.rng.choice(records)
        value = journal.get(Kind(kind), key)
        assert value is not None
        journal.commit([Change(kind=Kind(kind), key=key, value=value)], lambda _error: None)


def cut_card_power(world: World, off_ns: int) -> None:
    """All that lives by the card's power is gone; it comes back after `off_ns`."""
    if world.card_or_none is not None:
        world.kill_daemon()
    world.disk.power_cut()
    for module in world.modules.values():
        module.slot.lose_power()
    world.kernel.after(off_ns, world.start_daemon)


class _Cut:
    """A power cut shortly after the daemon has written something, and what it took along."""

    def __init__(self, site: Site, writes: int) -> None:
        world = self.world = site.world
        self.waiting = self.kept = -1  # batches that were not synced, and those of them left
        self.sectors = 0  # that they took
        self.epoch = world.card.decisions.epoch
        self.boots = {name: module.slot.boots for name, module in world.modules.items()}
        self.off_ns = span_ns(site, 0.1, 10.0)
        rewrite(site, writes)
        # the first write is synced alone, all others that came meanwhile after it
        syncs = site.rng.random() + (writes > 1)
        world.kernel.after(int(world.disk.sync_ns * syncs), self._cut)

    def _cut(self) -> None:
        journal = self.world.disk.journal
        self.waiting = len(journal.unsynced)
        length = len(write_log(list(journal.unsynced), 0))
        self.sectors = -(-length // SECTOR_BYTES)
        before = journal.batches
        cut_card_power(self.world, self.off_ns)
        self.kept = journal.batches - before

    @property
    def all_booted_again(self) -> bool:
        """The card is at its next epoch, and no module at its old boot."""
        card = self.world.card_or_none
        return (
            self.waiting >= 0
            and card is not None
            and card.ready
            and card.decisions.epoch > self.epoch
            and all(
                module.slot.boots > self.boots[name] or not module.slot.power_good
                for name, module in self.world.modules.items()
            )
        )


def _cut_fault(
    fault_id: str, text: str, writes: tuple[int, int], seen: Callable[[_Cut], bool]
) -> Fault:
    def inject(site: Site) -> Injection | None:
        card = site.world.card_or_none
        if card is None or not card.ready or not works(site.world, DAEMON):
            return None
        cut = _Cut(site, site.rng.randint(*writes))
        return injection(
            site,
            fault_id,
            f"the card's power is cut for {cut.off_ns / SECOND:.1f} s while it writes",
            lambda: seen(cut),
        )

    return Fault(id=fault_id, text=text, inject=inject, weight=0.5)


def start_error(world: World, word: str) -> Callable[[], bool]:
    """Did a daemon that started from now on say this, and end?"""
    before = len(world.start_errors)
    return lambda: any(word in text for text in world.start_errors[before:])


def _left_out(world: World) -> Callable[[], bool]:
    """Does a daemon that has started do without an estimate that it can't read?"""

    def seen() -> bool:
        card = world.card_or_none
        return card is not None and card.ready and card.journal.dropped > 0

    return seen


def _rot(site: Site) -> Injection | None:
    """A bit of a record turns over while no daemon runs; the one that starts must say so, and is
    given back what stood there, as from a backup. Without an estimate (a profile) it starts."""
    world = site.world
    card, durable = world.card_or_none, world.disk.journal.durable
    if card is None or not card.ready or not durable:
        return None
    kind, key = site.rng.choice(sorted(durable))
    at = site.rng.randrange(len(durable[kind, key]))
    world.kill_daemon()
    world.disk.power_cut()  # else a newer record may lie over it in the system's cache
    if (kind, key) not in durable:
        world.start_daemon()
        return None
    restore = world.disk.rot_record(kind, key, min(at, len(durable[kind, key]) - 1))
    said = _left_out(world) if kind == Kind.PROFILE else start_error(world, "corrupt")
    world.kernel.after(span_ns(site, 0.05, 1.0), world.start_daemon)
    return injection(
        site,
        "S4",
        f"a bit of {kind}/{key} turns over",
        said,
        heal=restore,
        lasts_ns=span_ns(site, 1.2, 8.0),
    )


def _full(site: Site) -> Injection | None:
    if site.rng.random() < 0.5:
        return _full_module(site)
    world = site.world
    card = world.card_or_none
    if card is None or world.disk.full:
        return None
    world.disk.full = True
    refused = card.journal.refused
    if not poke(site):
        world.disk.full = False
        return None
    return injection(
        site,
        "S5",
        "the card's disk is full",
        lambda: card.journal.refused > refused,
        heal=lambda: setattr(world.disk, "full", False),
        lasts_ns=span_ns(site, 0.1, 20.0),
    )


def _full_module(site: Site) -> Injection | None:
    """Its telemetry says so."""
    module = drawn_module(site)
    if module is None or module.slot.disk.full:
        return None
    disk, size = module.slot.disk, module.config.module.nvme_bytes
    disk.full = True

    def said_so() -> bool:
        cnm = cnm_of(site.world, module)
        report = cnm.telemetry if cnm is not None else None
        return report is not None and report.reading("nvme_bytes") == size

    return injection(
        site,
        "S5",
        f"{module.id}: its disk is full",
        said_so,
        cnm=module.id,
        heal=lambda: setattr(disk, "full", False),
        lasts_ns=span_ns(site, 2.5, 20.0),
    )


def _read_error(site: Site) -> Injection | None:
    """The daemon that starts can't read its journal."""
    world = site.world
    if world.card_or_none is None or world.disk.fail_reads:
        return None
    world.kill_daemon()
    world.disk.fail_reads = True
    said = start_error(world, "on read")
    world.kernel.after(span_ns(site, 0.05, 1.0), world.start_daemon)
    return injection(
        site,
        "S6",
        "reading the card's disk fails",
        said,
        heal=lambda: setattr(world.disk, "fail_reads", False),
        lasts_ns=span_ns(site, 1.2, 8.0),
    )


def _broken_journal(
    site: Site, fault_id: str, text: str, begin: Callable[[], None], end: Callable[[], None]
) -> Injection | None:
    """Writing fails for good: what runs is kept and new work refused, until somebody mends the
    disk and restarts the daemon."""
    world = site.world
    card = world.card_or_none
    if card is None or card.journal.failed:
        return None
    begin()
    if not poke(site):
        end()
        return None

    def heal() -> None:
        end()
        if world.card_or_none is not None and world.card.journal.failed:
            world.kill_daemon()
            world.kernel.after(SECOND // 10, world.start_daemon)

    return injection(
        site,
        fault_id,
        text,
        lambda: bool(card.journal.failed),
        heal=heal,
        lasts_ns=span_ns(site, 0.2, 20.0),
    )


def _sync_error(site: Site) -> Injection | None:
    disk = site.world.disk

    def set_to(on: bool) -> None:
        disk.fail_sync = on

    return _broken_journal(
        site, "S7", "the next sync fails", lambda: set_to(True), lambda: set_to(False)
    )


def _read_only(site: Site) -> Injection | None:
    disk = site.world.disk
    if disk.read_only:
        return None

    def set_to(on: bool) -> None:
        disk.read_only = on

    return _broken_journal(
        site, "S8", "the card's disk is read-only", lambda: set_to(True), lambda: set_to(False)
    )


STORAGE_FAULTS: Final = (
    _cut_fault(
        "S1",
        "the power of the card is cut in the middle of a write",
        (1, 1),
        lambda cut: cut.waiting > 0 and cut.all_booted_again,
    ),
    _cut_fault(
        "S2",
        "a write is torn: some of its sectors are there",
        (4, WRITES_MOST),
        lambda cut: cut.sectors > 1 and 0 < cut.kept < cut.waiting and cut.all_booted_again,
    ),
    _cut_fault(
        "S3",
        "writes that were not synced are lost",
        (2, WRITES_MOST),
        lambda cut: cut.kept < cut.waiting and cut.all_booted_again,
    ),
    Fault(id="S4", text="a bit of the stored data turns over", inject=_rot, weight=0.5),
    Fault(id="S5", text="the disk is full", inject=_full),
    Fault(id="S6", text="reading fails with EIO", inject=_read_error, weight=0.5),
    Fault(id="S7", text="fsync fails with EIO", inject=_sync_error, weight=0.5),
    Fault(id="S8", text="the file system becomes read-only", inject=_read_only, weight=0.5),
)
