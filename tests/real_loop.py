"""A loop on the real clock, and a way to run it until something holds."""

from collections.abc import Callable, Iterator

import pytest

from firmware.loop import MS, Loop
from hal.linux.clock import LinuxClock

PATIENCE_NS = 30_000 * MS
Until = Callable[[Callable[[], bool]], None]


@pytest.fixture
def loop() -> Iterator[Loop]:
    clock = LinuxClock()
    made = Loop(clock)
    yield made
    made.close()
    clock.close()


@pytest.fixture
def until(loop: Loop) -> Until:
    """Run the loop until the predicate holds; fails when patience is over."""

    def run(predicate: Callable[[], bool]) -> None:
        end_ns = loop.now_ns() + PATIENCE_NS

        def look() -> None:
            if predicate() or loop.now_ns() > end_ns:
                loop.stop()

        if predicate():
            return
        cancel = loop.every(MS, look)
        loop.run()
        cancel()
        assert predicate(), f"nothing came of it in {PATIENCE_NS / 1e9:.0f} s"

    return run


@pytest.fixture
def soon(loop: Loop) -> int:
    """A deadline that these tests never reach, ns."""
    return loop.now_ns() + 2 * PATIENCE_NS
