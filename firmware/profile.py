"""What one component identity was measured to use, and what that says about its next reservation.

The method is that of the Kubernetes vertical pod autoscaler (autoscaler/vertical-pod-autoscaler,
pkg/recommender/logic/recommender.go and estimator.go, model/container.go), in integers:

- *target*: the 90th percentile and 15 % head-room, of processor time in windows and of memory by
  its peaks, one for each instance and memory window;
- *confidence* C: days, the smaller of the time since the first sample and the time that samples
  cover. The target is trusted from below as target * (1 + 0.001 / C)^-2: after 5 minutes of samples
  0.6 of it, after 30 minutes 0.91, after an hour 0.95. From above it is the 95th percentile with
  the same head-room, times (1 + 1 / C): after 12 hours three times, after a day twice, after a
  week 1.14 times. So little evidence raises a little and lowers nothing;
- an out-of-memory kill needs the most of what was reserved and what was used, and 100 MiB more, or
  20 %, if that is more.

What differs: a memory peak above its reservation, and an out-of-memory kill, set a *floor* (the
peak with its head-room), which holds as long as the profile does and needs no confidence: the same
memory is never under-reserved twice. (Another image has another profile.)

Times are the profiler's own (`firmware.profiler`): they go on where they were after a restart.

Example: windows of 10 s, five minutes of them (30 windows), each 0.2 cores. The 90th percentile is
200, the target 230. C is 300 s of 86,400: trusted from below 230 * (3000 / 3864)^2 = 138; from
above 230 * 86,700 / 300 = 66,470. A component that declared 100 reserves 138 next time.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple, Self

from firmware.profile_histogram import MAX_VALUE, Histogram

SECOND_NS: Final = 1_000_000_000
HOUR_NS: Final = 3600 * SECOND_NS
DAY_S: Final = 86_400
TARGET_PERCENT: Final = 90
UPPER_PERCENT: Final = 95
HEADROOM_PERCENT: Final = 15
OOM_LEAST_BYTES: Final = 100 << 20
OOM_PERCENT: Final = 20
LEAST_S: Final = 20  # of samples before a target is shown or steers a choice
MEMORY_STEP: Final = 1 << 16  # bytes: 2^34 of them are the most that a workload may ask for
MAX_MEMORY_BYTES: Final = MAX_VALUE * MEMORY_STEP
MAX_NS: Final = 1 << 62


class Resource(NamedTuple):
    """How one resource is counted."""

    name: str  # with its unit
    step: int  # units to a step of the histogram
    half_life_ns: int


CPU: Final = 0
MEMORY: Final = 1
NVME: Final = 2
LINK: Final = 3
RESOURCES: Final = (
    Resource("cpu_milli", 1, 24 * HOUR_NS),  # VPA's half-lives for these two
    Resource("memory_bytes", MEMORY_STEP, 24 * HOUR_NS),
    # bandwidth comes in bursts, and a wrong figure costs speed and no life: a quarter of that
    Resource("nvme_kbit", 1, 6 * HOUR_NS),
    Resource("link_kbit", 1, 6 * HOUR_NS),
)


class Profile:
    """One component identity. Loop thread only; all times in, none taken."""

    __slots__ = (
        "_targets",
        "changed",
        "covered_ns",
        "first_ns",
        "floor_bytes",
        "image",
        "name",
        "ooms",
        "seen_ns",
        "urgent",
        "usage",
        "windows",
    )

    def __init__(self, image: str, name: str) -> None:
        self.image = image  # the reference that it was last seen under
        self.name = name  # of the component
        self.usage = tuple(Histogram(resource.half_life_ns) for resource in RESOURCES)
        self.first_ns = -1  # the begin of its first window; -1 before there was one
        self.seen_ns = 0
        self.covered_ns = 0  # by windows, of all instances together
        self.windows = 0
        self.floor_bytes = 0
        self.ooms = 0
        self.changed = False  # since it was last written down
        self.urgent = False  # the floor has been raised since then
        self._targets = [-1] * len(RESOURCES)  # by the percentile alone; -1 until it is asked for

    # --- learning ---

    def add_window(self, end_ns: int, length_ns: int, rates: tuple[int | None, ...]) -> None:
        """What one instance used on average: thousandths of a core, NVMe and link kbit/s."""
        for index, value in zip((CPU, NVME, LINK), rates, strict=True):
            if value is not None:
                self.usage[index].add(value, end_ns)
                self._targets[index] = -1
        self._seen(end_ns - length_ns, end_ns)
        self.covered_ns = min(self.covered_ns + length_ns, MAX_NS)
        self.windows += 1

    def add_peak(self, at_ns: int, window_ns: int, old_bytes: int | None, new_bytes: int) -> None:
        """A peak of memory; `old_bytes` is what this one replaces in its window, None for none."""
        steps = -(-new_bytes // MEMORY_STEP)
        if old_bytes is None:
            self.usage[MEMORY].add(steps, window_ns)
        else:
            self.usage[MEMORY].move(-(-old_bytes // MEMORY_STEP), steps, window_ns)
        self._targets[MEMORY] = -1
        self._seen(at_ns, at_ns)

    def _seen(self, begin_ns: int, end_ns: int) -> None:
        if self.first_ns < 0:
            self.first_ns = max(begin_ns, 0)
        self.seen_ns = max(self.seen_ns, end_ns)
        self.changed = True

    def raise_floor(self, needed_bytes: int) -> bool:
        """The next reservation is at least this. False: it was so already."""
        needed_bytes = min(needed_bytes, MAX_MEMORY_BYTES)
        if needed_bytes <= self.floor_bytes:
            return False
        self.floor_bytes = needed_bytes
        self.changed = self.urgent = True
        return True

    def on_peak(self, peak_bytes: int, reserved_bytes: int) -> bool:
        """True when this peak, above what was reserved, has raised the floor."""
        if peak_bytes <= reserved_bytes or not reserved_bytes:
            return False
        return self.raise_floor(with_headroom(peak_bytes))

    def on_oom(self, reserved_bytes: int) -> bool:
        """It was killed for want of memory. True when that has raised the floor."""
        self.ooms += 1
        self.changed = self.urgent = True
        used = max(reserved_bytes, self.peak(MEMORY))
        return self.raise_floor(max(used + OOM_LEAST_BYTES, used * (100 + OOM_PERCENT) // 100))

    # --- what it says ---

    def percentile(self, index: int, percent: int) -> int:
        """In the resource's unit; 0 without samples."""
        return self.usage[index].percentile(percent) * RESOURCES[index].step

    def peak(self, index: int) -> int:
        """The highest that has not faded."""
        return self.usage[index].highest * RESOURCES[index].step

    @property
    def confidence_s(self) -> int:
        """Seconds of evidence."""
        if self.first_ns < 0:
            return 0
        return min(self.seen_ns - self.first_ns, self.covered_ns) // SECOND_NS

    def target(self, index: int) -> int:
        """What it should be given, however little is known; at least the floor of memory."""
        return max(self._target(index), self.floor_bytes if index == MEMORY else 0)

    def _target(self, index: int) -> int:
        found = self._targets[index]
        if found < 0:
            found = with_headroom(self.percentile(index, TARGET_PERCENT))
            self._targets[index] = found
        return found

    def hint(self, index: int) -> int:
        """The target, or 0 while that is a guess: what may steer a choice."""
        if self.confidence_s >= LEAST_S:
            return self.target(index)
        return self.floor_bytes if index == MEMORY else 0

    def lower(self, index: int) -> int:
        """Less than this is too little, as far as is known."""
        found = trusted_from_below(self._target(index), self.confidence_s)
        return max(found, self.floor_bytes) if index == MEMORY else found

    def upper(self, index: int) -> int | None:
        """More than this is more than it needs, as far as is known; None: nothing is known."""
        if not self.usage[index].total or not self.confidence_s:
            return None
        found = with_headroom(self.percentile(index, UPPER_PERCENT))
        found = trusted_from_above(found, self.confidence_s)
        return max(found, self.floor_bytes) if index == MEMORY else found

    # --- on disk ---

    def decay(self, at_ns: int) -> None:
        """Let it fade to this time: it is smaller then."""
        for histogram in self.usage:
            histogram.decay(at_ns)
        self._targets = [-1] * len(RESOURCES)

    def to_json(self) -> dict[str, object]:
        """The journal's record (kind "profile", by identity)."""
        return {
            "image": self.image,
            "name": self.name,
            "first_ns": self.first_ns,
            "seen_ns": self.seen_ns,
            "covered_ns": self.covered_ns,
            "windows": self.windows,
            "floor_bytes": self.floor_bytes,
            "ooms": self.ooms,
            **{
                resource.name: self.usage[index].to_json()
                for index, resource in enumerate(RESOURCES)
                if self.usage[index].total
            },
        }

    @classmethod
    def from_json(cls, record: Mapping[str, object]) -> Self | None:
        """What of a record can be used; None: nothing. Never an error."""
        image, name = record.get("image"), record.get("name")
        if not isinstance(image, str) or not isinstance(name, str):
            return None
        found = cls(image[:256], name[:64])
        found.usage = tuple(
            Histogram.from_json(record.get(resource.name), resource.half_life_ns)
            for resource in RESOURCES
        )
        found.first_ns = _number(record, "first_ns", MAX_NS, -1)
        found.seen_ns = _number(record, "seen_ns", MAX_NS, 0)
        found.covered_ns = _number(record, "covered_ns", MAX_NS, 0)
        found.windows = _number(record, "windows", MAX_NS, 0)
        found.floor_bytes = _number(record, "floor_bytes", MAX_MEMORY_BYTES, 0)
        found.ooms = _number(record, "ooms", MAX_NS, 0)
        if found.seen_ns < found.first_ns:
            found.first_ns = found.seen_ns
        for histogram in found.usage:  # none of them can be of a later time than the last sample
            if histogram.epoch > found.seen_ns // histogram.half_life_ns + 1:
                histogram.epoch = found.seen_ns // histogram.half_life_ns
        return found


def _number(record: Mapping[str, object], name: str, most: int, default: int) -> int:
    value = record.get(name)
    return value if type(value) is int and 0 <= value <= most else default


def with_headroom(value: int) -> int:
    """And 15 %, rounded down."""
    return value * (100 + HEADROOM_PERCENT) // 100


def trusted_from_below(value: int, confidence_s: int) -> int:
    """value * (1 + 0.001 / days)^-2, rounded down: 86.4 s are a thousandth of a day."""
    return value * (10 * confidence_s) ** 2 // (10 * confidence_s + DAY_S // 100) ** 2


def trusted_from_above(value: int, confidence_s: int) -> int:
    """value * (1 + 1 / days), rounded down; `confidence_s` at least 1."""
    return value * (confidence_s + DAY_S) // confidence_s
