"""Which outcomes of a cut are tried, given what is under way at that moment.

    boundary   everything so far landed: the program was killed, or the disk was quick
    torn       the write that just came lands in part: each first n sectors, each sector missing,
               each sector alone; and where its file grew: zeros, noise, stale bytes
    subset     before each sync: all subsets of what is under way, up to SUBSET_LIMIT changes;
               beyond that all lost, each one lost, each one alone, each pair lost (or as many
               drawn), and DRAWN mixtures of all fates

A write that lands before an earlier one is a subset without the earlier one: two writes to the
same sectors included, where the later one lost is the earlier one on top.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import combinations, product
from typing import Final

from tools.sim.crash.disk import Disk, Fate, Plain, Torn, sectors_of
from tools.sim.crash.events import Change, Write

SUBSET_LIMIT: Final = 6  # 64 subsets
PAIRS_LIMIT: Final = 66  # all pairs of 12
DRAWN: Final = 24

Fates = tuple[Fate, ...]


def after(disk: Disk) -> Iterator[tuple[str, Fates]]:
    """Cuts right after the change that came last."""
    before: Fates = (Plain.LANDED,) * (len(disk.pending) - 1)
    yield "boundary", (*before, Plain.LANDED)
    last = disk.pending[-1]
    if isinstance(last, Write):
        partly: list[Fate] = [*tears(last)]
        if disk.grows(last):
            partly += [Plain.ZEROS, Plain.NOISE, Plain.STALE]
        for fate in partly:
            yield "torn", (*before, fate)


def tears(write: Write) -> list[Torn]:
    """Each way of landing in part that is tried, once."""
    count = sectors_of(write)
    whole = (1 << count) - 1
    masks = [(1 << number) - 1 for number in range(1, count)]
    masks += [whole & ~(1 << number) for number in range(count)]
    masks += [1 << number for number in range(count)]
    return [Torn(mask) for mask in dict.fromkeys(masks) if mask not in (0, whole)]


def subsets(disk: Disk, rng: random.Random) -> Iterator[tuple[str, Fates]]:
    """Cuts while all that is under way may have landed or not."""
    pending = disk.pending
    if len(pending) <= SUBSET_LIMIT:
        chosen = set(product((Plain.LANDED, Plain.LOST), repeat=len(pending)))
        ordered = sorted(chosen, key=lambda fates: [fate.value for fate in fates])
    else:
        ordered = list(_some(len(pending), rng))
    for fates in ordered:
        yield "subset", fates
    if len(pending) > 1:
        for _ in range(DRAWN if len(pending) > SUBSET_LIMIT else len(pending)):
            yield "drawn", drawn(disk, pending, rng)


def _some(count: int, rng: random.Random) -> Iterator[tuple[Plain, ...]]:
    landed, lost = [Plain.LANDED] * count, [Plain.LOST] * count
    yield tuple(lost)
    for number in range(count):
        yield (*landed[:number], Plain.LOST, *landed[number + 1 :])
        yield (*lost[:number], Plain.LANDED, *lost[number + 1 :])
        yield (*landed[:number], *lost[number:])
    pairs = list(combinations(range(count), 2)) if count <= 64 else []
    for first, second in pairs if len(pairs) <= PAIRS_LIMIT else _pairs(count, rng):
        fates = list(landed)
        fates[first] = fates[second] = Plain.LOST
        yield tuple(fates)


def _pairs(count: int, rng: random.Random) -> Iterator[Sequence[int]]:
    for _ in range(PAIRS_LIMIT):
        yield rng.sample(range(count), 2)


def drawn(disk: Disk, pending: Sequence[Change], rng: random.Random) -> Fates:
    """Any mixture."""
    fates: list[Fate] = []
    for change in pending:
        choice: list[Fate] = [Plain.LANDED, Plain.LANDED, Plain.LOST]
        if isinstance(change, Write):
            choice += [Torn(rng.getrandbits(sectors_of(change)))]
            if disk.grows(change):
                choice += [Plain.ZEROS, Plain.NOISE, Plain.STALE]
        fates.append(rng.choice(choice))
    return tuple(fates)
