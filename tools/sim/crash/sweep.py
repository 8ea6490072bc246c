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


def sweep(
    recording: Recording,
    trial: Trial,
    *,
    seed: int = 0,
    again_every: int = 0,
    share: Share = Share(),
    late: Callable[[], bool] = lambda: False,
    progress: Progress = lambda _done, _total: None,
) -> Tally:
    """Cut everywhere. `again_every`: each so-manieth image gets second cuts, 0 for none, 1 for
    all. Ends early, not complete, when `late()`, and after VIOLATIONS_LIMIT violations."""
    tally = Tally()
    with scratch_dir() as root, scratch_dir() as second:
        for tried, point in enumerate(points(recording, {}, seed, share, progress), 1):
            if late() or len(tally.violations) >= VIOLATIONS_LIMIT:
                tally.complete = False
                break
            lay_out(root, point.image)
            tally.points[point.kind] += 1
            text = trial.judge(root, point.acknowledged, point.submitted)
            if not text and tried % REOPEN_EVERY == 0:  # what ended in order must still be there
                tally.points["reopened"] += 1
                text = trial.judge(root, point.acknowledged, point.submitted)
            if text:
                tally.violations.append(_violation(point, text))
            elif again_every and tried % again_every == 0:
                tally.again += 1
                _cut_again(tally, trial, point, second, seed)
    return tally


def points(
    recording: Recording, start: Image, seed: int, share: Share, progress: Progress
) -> Iterator[_Point]:
    """All cuts of a recording that began on `start`."""
    disk = Disk(start, recording.nodes)
    acknowledged = submitted = 0
    total = len(recording.events)
    for number, event in enumerate(recording.events):
        progress(number, total)
        ours = number % share.of == share.number
        cuts: list[tuple[str, tuple[Fate, ...]]] = []
        match event:
            case Submitted(commit=commit):
                submitted = commit
            case Acknowledged(commit=commit):
                first, acknowledged = commit > acknowledged, commit
                if first and ours:
                    cuts = list(_under_way(disk, seed, number)) or [("boundary", ())]
            case Sync() | SyncDir() if ours:
                cuts = list(_under_way(disk, seed, number))
        seen = set()
        for kind, fates in cuts:
            if fates not in seen:
                seen.add(fates)
                image = disk.image(fates)
                yield _Point(number, kind, fates, image, acknowledged, submitted)
        disk.step(event)
        if ours and not isinstance(event, Sync | SyncDir | Submitted | Acknowledged):
            for kind, fates in after(disk):
                image = disk.image(fates)
                yield _Point(number, kind, fates, image, acknowledged, submitted)
    progress(total, total)


def _under_way(disk: Disk, seed: int, number: int) -> Iterator[tuple[str, tuple[Fate, ...]]]:
    if disk.pending:
        rng = random.Random(f"subsets {seed} {number}")  # noqa: S311 - the same in every run
        yield from subsets(disk, rng)


def _cut_again(tally: Tally, trial: Trial, first: _Point, root: str, seed: int) -> None:
    """Recover from the first cut, work on, and cut that everywhere."""
    lay_out(root, first.image)
    made = trial.again(root, seed)
    if made is None:
        return
    next_trial, recording = made
    rng = random.Random(f"second {seed} {tally.total}")  # noqa: S311 - the same in every run
    for point in points(recording, first.image, seed, Share(), lambda _done, _total: None):
        if point.kind == "torn" and rng.random() >= SECOND_TEARS:
            continue
        lay_out(root, point.image)
        tally.points["second"] += 1
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
