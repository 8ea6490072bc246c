"""A real loop, and the powers that these tests share."""

from collections.abc import Callable, Iterator

import pytest

from firmware.loop import MS, Loop
from hal.linux.clock import LinuxClock
from hal.linux.workers import Workers

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
    """Run the loop until the predicate holds; fails after 20 s."""

    def run(predicate: Callable[[], bool]) -> None:
        end_ns = loop.now_ns() + 20_000 * MS

        def look() -> None:
            if predicate() or loop.now_ns() > end_ns:
                loop.stop()

        if predicate():
            return
        cancel = loop.every(MS, look)
        loop.run()
        cancel()
        assert predicate(), "nothing came of it in 20 s"

    return run


@pytest.fixture
def workers(loop: Loop) -> Iterator[Workers]:
    made = Workers(loop)
    yield made
    made.close()


@pytest.fixture
def soon(loop: Loop) -> int:
    """A deadline that these tests never reach, ns."""
    return loop.now_ns() + 30_000 * MS
