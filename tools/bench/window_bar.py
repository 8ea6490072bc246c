"""The rows of `apf bench window` that are about memory which both ends map as a whole (a BAR).

Copies through `hal.linux.pci_window` beside plain copies of the same size into the same mapping,
and a published word beside four bytes that are stored there. `bar_rows` takes any such memory: a
file here, the BAR of an ivshmem function in a virtual machine (tests/hil/cases/bench.py).
"""

import mmap
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from hal.linux.pci_window import BarWindow
from tools.bench.figures import WINDOW_SHARE, Figure
from tools.bench.measure import Bench, cpu_us_per_call

KIB: Final = 1 << 10
BAR_BYTES: Final = 16 << 20
SIZES: Final = {"64KiB": 64 * KIB, "1MiB": 1024 * KIB}
TakeTurns = Callable[[Callable[[int], None], Callable[[int], None], int, int], tuple[float, float]]


def file_rows(bench: Bench, take_turns: TakeTurns) -> list[Figure]:
    """Over a file in memory, both ends in this process."""
    shm = Path("/dev/shm")  # noqa: S108  memory, not a place for files of ours to be found in
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as folder:
        path = Path(folder) / "bar"
        path.write_bytes(bytes(BAR_BYTES))

        def mapping() -> mmap.mmap:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                return mmap.mmap(fd, BAR_BYTES)
            finally:
                os.close(fd)

        return bar_rows("file", mapping, bench, take_turns)


def bar_rows(
    name: str, mapping: Callable[[], mmap.mmap], bench: Bench, take_turns: TakeTurns
) -> list[Figure]:
    """`mapping()` maps the same memory anew. Copies in and out, and a published word."""
    card, module = BarWindow(mapping(), "a", name), BarWindow(mapping(), "b", name)
    plain_map = mapping()
    plain = memoryview(plain_map)
    target = bytearray(max(SIZES.values()))
    rows = []
    for label, size in SIZES.items():
        source = b"\xa5" * size

        def write(_size: int, source: bytes = source) -> None:
            card.write(0, source)

        def plain_write(size: int, source: bytes = source) -> None:
            plain[4096 : 4096 + size] = source

        def read(size: int) -> None:
            target[:size] = module.read(0, size)

        def plain_read(size: int) -> None:
            target[:size] = plain[4096 : 4096 + size]

        for verb, ours, base in (("write", write, plain_write), ("read", read, plain_read)):
            value, baseline = take_turns(ours, base, size, bench.pick(15, 3))
            rows.append(
                Figure(
                    name=f"window.{name}_{verb}_{label}",
                    value=value,
                    unit="GB/s",
                    baseline=baseline,
                    baseline_name="memcpy of the same size",
                    goal=WINDOW_SHARE,
                )
            )
    count = bench.pick(20_000, 2_000)
    repeats = bench.pick(7, 3)

    def publish() -> int:
        for number in range(count):
            card.publish(0x80, number)
        return count

    def store() -> int:
        for number in range(count):
            plain[4096 + 0x80 : 4096 + 0x84] = number.to_bytes(4, "little")
        return count

    rows.append(
        Figure(
            name=f"window.{name}_publish",
            value=cpu_us_per_call(publish, repeats),
            unit="us",
            baseline=cpu_us_per_call(store, repeats),
            baseline_name="four bytes into the mapping, no barrier",
        )
    )
    plain.release()
    for part in (card, module, plain_map):
        part.close()
    return rows
