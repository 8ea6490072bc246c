"""From the counters of one running instance to the samples of its profile.

Processor time, bytes moved on NVMe and on the link come as counters that only grow; their rate over
a window of 10 s is one sample. Memory is a level: its peak in a window of 10 minutes is one sample,
which is there from the first report on and grows with the peak. Within a window only sums and the
highest level count, so the order of what is reported there does not matter.

The link's counter is the module's: it is a component's own only while nothing else runs there, and
else the caller gives none. Time with no counter at both of its ends is no sample.
"""

from typing import Final

from firmware.profile import SECOND_NS, Profile

WINDOW_NS: Final = 10 * SECOND_NS
LEAST_WINDOW_NS: Final = SECOND_NS  # of what ends sooner, no rate is taken
MEMORY_WINDOW_NS: Final = 600 * SECOND_NS

Counters = tuple[int | None, int | None, int | None]  # cpu_us, nvme_bytes, link_bytes


class Window:
    """What was used so far, and over how long that is known, for each counter."""

    __slots__ = ("cpu_us", "known_ns", "length_ns", "link_bytes", "nvme_bytes")

    def __init__(self) -> None:
        self.length_ns = 0
        self.cpu_us = self.nvme_bytes = self.link_bytes = 0
        self.known_ns = [0, 0, 0]

    def add(self, length_ns: int, grown: Counters) -> None:
        """`grown`: by how much each counter did in this time; None where it is not known."""
        cpu, nvme, link = grown
        self.length_ns += length_ns
        if cpu is not None:
            self.cpu_us += cpu
            self.known_ns[0] += length_ns
        if nvme is not None:
            self.nvme_bytes += nvme
            self.known_ns[1] += length_ns
        if link is not None:
            self.link_bytes += link
            self.known_ns[2] += length_ns

    def rates(self) -> Counters:
        """Thousandths of a core, NVMe kbit/s, link kbit/s; None of what was never known."""
        cpu, nvme, link = self.known_ns
        return (
            self.cpu_us * 1_000_000 // cpu if cpu else None,
            self.nvme_bytes * 8_000_000 // nvme if nvme else None,
            self.link_bytes * 8_000_000 // link if link else None,
        )


class Meter:
    """One generation of one instance."""

    __slots__ = ("_at_ns", "_before", "_peak_bytes", "_peak_end_ns", "_window")

    def __init__(self) -> None:
        self._window = Window()
        self._at_ns = -1
        self._before: Counters = (None, None, None)
        self._peak_bytes: int | None = None
        self._peak_end_ns = 0

    def read(
        self, profile: Profile, at_ns: int, counters: Counters, memory_bytes: int | None
    ) -> None:
        """One report. Reports at the same time as the last one, or before, tell no rate."""
        if memory_bytes is not None:
            self._level(profile, at_ns, max(memory_bytes, 0))
        before, self._before = self._before, counters
        length_ns = at_ns - self._at_ns
        first, self._at_ns = self._at_ns < 0, max(at_ns, self._at_ns)
        if first or length_ns <= 0:
            return
        grown = (
            _grown(counters[0], before[0]),
            _grown(counters[1], before[1]),
            _grown(counters[2], before[2]),
        )
        self._window.add(length_ns, grown)
        if self._window.length_ns >= WINDOW_NS:
            self.close(profile)

    def close(self, profile: Profile) -> None:
        """The window ends here: full, or because the instance has."""
        window, self._window = self._window, Window()
        if window.length_ns >= LEAST_WINDOW_NS:
            profile.add_window(self._at_ns, window.length_ns, window.rates())

    def _level(self, profile: Profile, at_ns: int, memory_bytes: int) -> None:
        if at_ns >= self._peak_end_ns:
            self._peak_end_ns = at_ns + MEMORY_WINDOW_NS
            self._peak_bytes = None
        elif self._peak_bytes is not None and memory_bytes <= self._peak_bytes:
            return
        # as of the window's end, whenever it was reached: its order does not matter
        profile.add_peak(at_ns, self._peak_end_ns, self._peak_bytes, memory_bytes)
        self._peak_bytes = memory_bytes


def _grown(now: int | None, before: int | None) -> int | None:
    """None where one is not known, or it is another counter that began anew."""
    return None if now is None or before is None or now < before else now - before
