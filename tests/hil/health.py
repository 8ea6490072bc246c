"""What must be the same after a case as before, and what the kernel must not have said.

Ref: kernel, Documentation/ABI/testing/dev-kmsg; Documentation/admin-guide/bug-hunting.rst.
"""

import contextlib
import gc
import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

_COMPLAINTS: Final = re.compile(
    r"BUG:|WARNING:|Oops|general protection|Call Trace|kernel panic|hung_task|blocked for more than"
    r"|AER:.*(error|Error)|DPC:|DMAR:.*(fault|Fault)|PCIe Bus Error|I/O error|Out of memory",
    re.IGNORECASE,
)
_PCI: Final = Path("/sys/bus/pci/devices")
_GROUPS: Final = Path("/sys/kernel/iommu_groups")
_LINES_SHOWN: Final = 20
_LOOKS: Final = 6
_LOOK_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Of this process and this machine."""

    descriptors: int
    threads: int
    rss_kib: int
    groups: int
    functions: frozenset[str]
    taken: frozenset[str]  # functions that VFIO holds or that have a driver_override

    @classmethod
    def now(cls) -> Self:
        gc.collect()
        functions = frozenset(_names(_PCI))
        return cls(
            descriptors=len(_names(Path("/proc/self/fd"))),
            threads=len(_names(Path("/proc/self/task"))),
            rss_kib=int(Path("/proc/self/statm").read_text().split()[1])
            * os.sysconf("SC_PAGESIZE")
            // 1024,
            groups=len(_names(_GROUPS)),
            functions=functions,
            taken=frozenset(name for name in functions if _is_taken(_PCI / name)),
        )

    @classmethod
    def at_rest(cls) -> Self:
        """A look that a worker is just taking holds a file of sysfs open: of some moments the one
        with the fewest descriptors."""
        looks = []
        for _ in range(_LOOKS):
            looks.append(cls.now())
            time.sleep(_LOOK_S)
        return min(looks, key=lambda look: (look.descriptors, look.threads))

    def worse(self, after: Self) -> list[str]:
        """What is not as it was, in words."""
        found = [
            f"{name}: {was} before, {now} after"
            for name, was, now in (
                ("descriptors", self.descriptors, after.descriptors),
                ("threads", self.threads, after.threads),
                ("IOMMU groups", self.groups, after.groups),
            )
            if was != now
        ]
        found += [f"PCI function {name} is gone" for name in self.functions - after.functions]
        found += [f"PCI function {name} was left" for name in after.functions - self.functions]
        return found + [
            f"PCI function {name} is still with VFIO" for name in after.taken - self.taken
        ]

    def figures(self, before: Self) -> dict[str, int]:
        """For the report."""
        return {
            "descriptors": self.descriptors,
            "rss_kib": self.rss_kib,
            "rss_grown_kib": self.rss_kib - before.rss_kib,
        }


class KernelLog:
    """The kernel's messages from now on."""

    def __init__(self) -> None:
        records = _records()
        self._last = records[-1][0] if records else -1

    def since(self) -> list[str]:
        """Those that came after, oldest first."""
        return [text for number, text in _records() if number > self._last]


def _records() -> list[tuple[int, str]]:
    """All that the kernel keeps: number and text."""
    found: list[tuple[int, str]] = []
    handle = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with contextlib.suppress(BlockingIOError):
            while True:
                with contextlib.suppress(BrokenPipeError):  # overwritten while we read: go on
                    head, _, text = os.read(handle, 8192).decode(errors="replace").partition(";")
                    found.append((int(head.split(",")[1]), text.splitlines()[0]))
    finally:
        os.close(handle)
    return found


def kernel_complaints(lines: Sequence[str], allowed: Iterable[str]) -> list[str]:
    """Those that say something is broken, but for what was allowed."""
    patterns = [re.compile(pattern) for pattern in allowed]
    found = [
        f"kernel: {line}"
        for line in lines
        if _COMPLAINTS.search(line) and not any(pattern.search(line) for pattern in patterns)
    ]
    return found[:_LINES_SHOWN]


def leftovers(session: int) -> list[str]:
    """Kill the processes that a call has left in its session, and name them."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            stat = (entry / "stat").read_text()
            name, _, rest = stat.partition("(")[2].rpartition(")")
            state, sid = rest.split()[0], int(rest.split()[3])
            if sid == session and state != "Z":
                os.kill(int(entry.name), 9)
                found.append(f"process {name} was left behind")
    return found


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return os.listdir(folder)
    return []


def _is_taken(function: Path) -> bool:
    with contextlib.suppress(OSError):
        driver = function / "driver"
        if driver.exists() and driver.resolve().name == "vfio-pci":
            return True
        return (function / "driver_override").read_text().strip() not in ("", "(null)")
    return False
