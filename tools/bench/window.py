"""`apf bench window`: copies through the shared-memory window beside plain copies of the same size,
and chunks through a whole WindowChannel.

CPU time: a copy never waits. Each copy through the window takes turns with a plain slice assignment
between the same source and the same physical pages (a second mapping of the window's memfd: which
pages share a cache line is luck). So only our code is in the ratio. What is written is `bytes`, as
the ring writes it.
"""

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Final

from firmware.loop import Loop
from firmware.window import RING_ENTRIES, SLOT_BYTES, WindowChannel
from hal.linux.clock import LinuxClock
from hal.linux.entropy import LinuxEntropy
from hal.linux.shm import EventfdDoorbell, ShmWindow, create_window_memfd
from tools.bench.figures import WINDOW_SHARE, Figure, Unmeasured
from tools.bench.measure import Bench, cpu_ns
from tools.bench.timing import SECOND
from tools.bench.window_bar import file_rows

KIB: Final = 1 << 10
MIB: Final = 1 << 20
SIZES: Final = {"64KiB": 64 * KIB, "1MiB": MIB, "16MiB": 16 * MIB, "64MiB": 64 * MIB}
LARGEST: Final = max(SIZES.values())
BATCH_BYTES: Final = 32 * MIB  # of one timing: a few ms
CHANNEL_WINDOW_BYTES: Final = 16 * MIB  # as the local board's
CHANNEL_DEADLINE_NS: Final = 10 * SECOND
WARM_CHUNKS: Final = 2 * RING_ENTRIES  # every slot was written once
_UNIT: Final = "GB/s"


def run(bench: Bench) -> list[Figure]:
    """All rows."""
    rows = []
    with _Memory() as memory:
        for name, size in SIZES.items():
            memory.prepare(size)
            repeats = bench.pick(15, 3)
            write, plain_write = take_turns(memory.write, memory.plain_write, size, repeats)
            read, plain_read = take_turns(memory.read, memory.plain_read, size, repeats)
            for verb, value, base in (("write", write, plain_write), ("read", read, plain_read)):
                rows.append(
                    Figure(
                        name=f"window.{verb}_{name}",
                        value=value,
                        unit=_UNIT,
                        baseline=base,
                        baseline_name="memcpy of the same size",
                        goal=WINDOW_SHARE,
                    )
                )
        memory.prepare(SLOT_BYTES)
        _gbps, base = take_turns(memory.plain_write, memory.plain_write, SLOT_BYTES, 5)
    rows.append(_channel_row(bench.pick(4096, 512), base))
    return rows + file_rows(bench, take_turns)


class _Memory:
    """A window with both its ends, and the same memory without it."""

    def __enter__(self) -> "_Memory":
        memfd = create_window_memfd("bench", 2 * LARGEST)
        self._maps = [mmap.mmap(memfd, LARGEST), mmap.mmap(-1, LARGEST)]
        self._plain, self._target = (memoryview(item) for item in self._maps)
        self._tx = ShmWindow(os.dup(memfd), "card")
        self._rx = ShmWindow(memfd, "cnm")
        self.prepare(LARGEST)  # every page is there before anything is timed
        self.write(LARGEST)
        self.read(LARGEST)
        self.plain_read(LARGEST)
        return self

    def __exit__(self, *_exc: object) -> None:
        for view in (self._plain, self._target):
            view.release()
        for mapping in self._maps:
            mapping.close()
        self._tx.close()
        self._rx.close()

    def prepare(self, size: int) -> None:
        """The source of the writes to come. Not zeros: the kernel backs those by one page."""
        self._source = b"\xa5" * size

    def write(self, size: int) -> None:
        del size
        self._tx.write(0, self._source)

    def plain_write(self, size: int) -> None:
        self._plain[:size] = self._source

    def read(self, size: int) -> None:
        self._target[:size] = self._rx.read(0, size)

    def plain_read(self, size: int) -> None:
        self._target[:size] = self._plain[:size]


def take_turns(
    first: Callable[[int], None], second: Callable[[int], None], size: int, repeats: int
) -> tuple[float, float]:
    """Median GB/s of both, timed by turns."""
    count = max(1, BATCH_BYTES // size)
    found: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        pair = ((first, found[0]), (second, found[1]))
        for copy, values in pair if turn % 2 else reversed(pair):
            start_ns = cpu_ns()
            for _ in range(count):
                copy(size)
            spent_ns = cpu_ns() - start_ns
            if turn:  # the first turn warms up
                values.append(count * size / spent_ns)
    return median(found[0]), median(found[1])


def _channel_row(chunks: int, memcpy_gbps: float) -> Figure:
    """Both ends of a channel on one loop: ring, descriptors, CRC-32C on both sides."""
    name = "window.channel_64KiB_chunks"
    base_name = "memcpy of 64 KiB"
    try:
        value = _channel_gbps(chunks)
    except Unmeasured as exc:
        return Figure(name=name, unit=_UNIT, error=str(exc))
    return Figure(name=name, value=value, unit=_UNIT, baseline=memcpy_gbps, baseline_name=base_name)


@contextmanager
def _channels(loop: Loop) -> Iterator[tuple[WindowChannel, WindowChannel]]:
    memfd = create_window_memfd("bench", CHANNEL_WINDOW_BYTES)
    windows = ShmWindow(os.dup(memfd), "card"), ShmWindow(memfd, "cnm")
    to_cnm, to_card = os.eventfd(0), os.eventfd(0)
    bells = (
        EventfdDoorbell(os.dup(to_card), os.dup(to_cnm)),
        EventfdDoorbell(to_cnm, to_card),
    )
    ends = [
        WindowChannel(
            window,
            bell,
            loop,
            LinuxEntropy(),
            ring_entries=RING_ENTRIES,
            slot_bytes=SLOT_BYTES,
        )
        for window, bell in zip(windows, bells, strict=True)
    ]
    try:
        yield ends[0], ends[1]
    finally:
        for end in ends:
            end.close()
        for closing in (*windows, *bells):
            closing.close()


def _channel_gbps(chunks: int) -> float:
    clock = LinuxClock()
    loop = Loop(clock)
    data = os.urandom(SLOT_BYTES)
    state = {"sent": 0, "came": 0, "start_ns": 0}
    with _channels(loop) as (source, sink):

        def send() -> None:
            while state["sent"] < chunks and source.send(1, 1, state["sent"], data):
                state["sent"] += 1

        def came(_kind: int, _transfer: int, _chunk: int, _data: bytes) -> None:
            state["came"] += 1
            if state["came"] == WARM_CHUNKS:
                state["start_ns"] = cpu_ns()
            if state["came"] == chunks:
                loop.stop()

        source.on_connect = source.on_space = send
        sink.on_chunk = came
        source.attach()
        sink.attach()
        loop.call_later(CHANNEL_DEADLINE_NS, loop.stop)
        loop.run()
        spent_ns = cpu_ns() - state["start_ns"]
    loop.close()
    clock.close()
    if state["came"] < chunks:
        raise Unmeasured(f"{state['came']} of {chunks} chunks came within 10 s")
    return (chunks - WARM_CHUNKS) * SLOT_BYTES / spent_ns
