"""Every crash point of a recording: rebuild what a cut left, open it, compare with what was
promised; and for a share of them let the store go on and cut that too.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tools.sim.crash.disk import Disk, Fate, Image, Torn
from tools.sim.crash.events import Acknowledged, Submitted, Sync, SyncDir
from tools.sim.crash.fates import after, subsets
from tools.sim.crash.record import Recording
from tools.sim.crash.scratch import lay_out, scratch_dir
from tools.sim.crash.trial import Trial

REOPEN_EVERY: Final = 16  # images that are opened once more after they were closed in order
VIOLATIONS_LIMIT: Final = 20  # enough to see what is wrong; the sweep ends there
SECOND_TEARS: Final = 0.25  # of the torn writes in a second cut; all other outcomes are tried

Progress = Callable[[int, int], None]  # events done, of how many


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashViolation:
    """A cut after which the store broke its promise. Event and fates rebuild the image."""

    event: int  # of the recording: a boundary or a tear is right after it, a subset before
    kind: str
    text: str
    fates: str
    second: str = ""  # of the second cut, the same three in words

    def to_json(self) -> dict[str, Any]:
        return {
            "event": self.event,
            "kind": self.kind,
            "text": self.text,
            "fates": self.fates,
            "second": self.second,
        }


@dataclass(slots=True)
class Tally:
    """What a sweep did."""

    points: Counter[str] = field(default_factory=Counter)  # by kind
    again: int = 0  # images that were worked on and cut a second time
    violations: list[CrashViolation] = field(default_factory=list)
    complete: bool = True

    @property
    def total(self) -> int:
        return sum(self.points.values())

    def add(self, other: "Tally") -> None:
        self.points.update(other.points)
        self.again += other.again
        self.violations = [*self.violations, *other.violations][:VIOLATIONS_LIMIT]
        self.complete = self.complete and other.complete


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Which of the events this process takes: each `of`-th, from `number` on."""

    number: int = 0
    of: int = 1


@dataclass(frozen=True, slots=True)
class _Point:
    """One cut."""

    event: int
    kind: str
    fates: Sequence[Fate]
    image: Image
    acknowledged: int
    submitted: int
    loaded: bool  # the program had read what was there
    disk: Disk  # of a kill only: as it was; else it has gone on


def sweep(
    recording: Recording,
    trial: Trial,
    *,
    seed: int = 0,
    again_every: int = 0,
    kill_every: int = 0,
    share: Share = Share(),
    late: Callable[[], bool] = lambda: False,
    progress: Progress = lambda _done, _total: None,
) -> Tally:
    """Cut everywhere. `again_every`: each so-manieth image is worked on and cut again, 0 for none.
    `kill_every`: before each so-manieth sync the program is killed only, another one goes on with
    what it finds, and then the power is cut. Ends early, not complete, when `late()`, and after
    VIOLATIONS_LIMIT violations."""
    tally = Tally()
    tried = kills = 0
    with scratch_dir() as root, scratch_dir() as second:
        for point in points(recording, Disk(), seed, share, progress):
            if late() or len(tally.violations) >= VIOLATIONS_LIMIT:
                tally.complete = False
                break
            if point.kind == "killed":
                kills += 1
                if kill_every and kills % kill_every == 0:
                    _cut_again(tally, trial, point, second, seed)
                continue
            tried += 1
            lay_out(root, point.image)
            tally.points[point.kind] += 1
            text = trial.judge(root, point.acknowledged, point.submitted)
            if not text and tried % REOPEN_EVERY == 0:  # what ended in order must still be there
                tally.points["reopened"] += 1
                text = trial.judge(root, point.acknowledged, point.submitted)
            if text:
                tally.violations.append(_violation(point, text))
            elif again_every and tried % again_every == 0:
                _cut_again(tally, trial, point, second, seed)
    return tally


def points(
    recording: Recording, disk: Disk, seed: int, share: Share, progress: Progress
) -> Iterator[_Point]:
    """All cuts of a recording that began on `disk`; and the kills before its syncs."""
    acknowledged = submitted = 0
    loaded = False
    total = len(recording.events)
    for number, event in enumerate(recording.events):
        progress(number, total)
        ours = number % share.of == share.number
        cuts: list[tuple[str, tuple[Fate, ...]]] = []
        match event:
            case Submitted(commit=commit):
                submitted = commit
            case Acknowledged(commit=commit):
                first = commit > acknowledged or not loaded
                acknowledged, loaded = commit, True
                if first and ours:
                    cuts = list(_under_way(disk, seed, number)) or [("boundary", ())]
            case Sync() | SyncDir() if ours:
                cuts = list(_under_way(disk, seed, number))
                if isinstance(event, Sync) and cuts:
                    twin = disk.copy()
                    yield _Point(
                        number, "killed", (), twin.seen(), acknowledged, submitted, loaded, twin
                    )
        for kind, fates in dict.fromkeys(cuts):
            image = disk.image(fates)
            yield _Point(number, kind, fates, image, acknowledged, submitted, loaded, disk)
        disk.step(event)
        if ours and not isinstance(event, Sync | SyncDir | Submitted | Acknowledged):
            for kind, fates in after(disk):
                image = disk.image(fates)
                yield _Point(number, kind, fates, image, acknowledged, submitted, loaded, disk)
    progress(total, total)


def _under_way(disk: Disk, seed: int, number: int) -> Iterator[tuple[str, tuple[Fate, ...]]]:
    if disk.pending:
        rng = random.Random(f"subsets {seed} {number}")  # noqa: S311 - the same in every run
        yield from subsets(disk, rng)


def _cut_again(tally: Tally, trial: Trial, first: _Point, root: str, seed: int) -> None:
    """Recover from the first cut or kill, work on, and cut that everywhere. After a kill, what
    was under way still is; what the next program has read it must be able to rely on."""
    lay_out(root, first.image)
    made = trial.again(root, seed)
    if made is None:
        return
    next_trial, recording = made
    killed = first.kind == "killed"
    nodes = recording.nodes
    disk = first.disk.renumbered(nodes) if killed else Disk(first.image, nodes)
    tally.again += 1
    rng = random.Random(f"second {seed} {tally.again}")  # noqa: S311 - the same in every run
    for point in points(recording, disk, seed, Share(), lambda _done, _total: None):
        thinned = point.kind == "torn" and rng.random() >= SECOND_TEARS
        if thinned or point.kind == "killed" or (killed and not point.loaded):
            continue
        lay_out(root, point.image)
        tally.points["after a kill" if killed else "second"] += 1
        text = next_trial.judge(root, point.acknowledged, point.submitted)
        if text:
            tally.violations.append(_violation(first, text, second=point))
            return


def _violation(point: _Point, text: str, second: _Point | None = None) -> CrashViolation:
    return CrashViolation(
        event=point.event,
        kind=point.kind,
        text=text,
        fates=_words(point.fates),
        second=f"{second.event} {second.kind} {_words(second.fates)}" if second else "",
    )


def _words(fates: Sequence[Fate]) -> str:
    return " ".join(
        f"torn:{fate.sectors:b}" if isinstance(fate, Torn) else fate.value for fate in fates
    )
