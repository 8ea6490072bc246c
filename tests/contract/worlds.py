"""Real and virtual time behind one `run_until`, so that a suite is written once."""

from collections.abc import Callable
from typing import Final

import pytest

from firmware.loop import MS, Loop
from hal.mock.kernel import VirtualKernel

NODE: Final = "suite"
SECOND_NS: Final = 1_000_000_000


class RealWorld:
    """A real loop on the Linux clock."""

    name = "real"

    def __init__(self) -> None:
        from hal.linux.clock import LinuxClock  # late: the mock's rows need no Linux

        self._clock = LinuxClock()
        self.reactor = Loop(self._clock)

    def run_until(self, predicate: Callable[[], bool], limit_s: float = 10.0) -> None:
        """Run the loop until the predicate holds; fails the test after `limit_s`."""
        end_ns = self.reactor.now_ns() + int(limit_s * SECOND_NS)
        met = predicate()

        def look() -> None:
            nonlocal met
            met = predicate()
            if met or self.reactor.now_ns() > end_ns:
                self.reactor.stop()

        if not met:
            cancel = self.reactor.every(MS, look)
            self.reactor.run()
            cancel()
        if not met:
            pytest.fail(f"nothing came of it in {limit_s} s")

    def run_for(self, seconds: float) -> None:
        """Let time pass while the loop runs."""
        self.reactor.call_later(int(seconds * SECOND_NS), self.reactor.stop)
        self.reactor.run()

    def close(self) -> None:
        """Drop what the loop holds."""
        self.reactor.close()
        self._clock.close()


class VirtualWorld:
    """One node of a virtual kernel; `reactor.clock.node` leads a mock backend to it."""

    name = "virtual"

    def __init__(self, seed: int = 1) -> None:
        self.kernel = VirtualKernel(seed)
        self.reactor = Loop(self.kernel.node(NODE).clock)
        self.kernel.attach(NODE, self.reactor)

    def run_until(self, predicate: Callable[[], bool], limit_s: float = 10.0) -> None:
        """Run the virtual world until the predicate holds; fails the test after `limit_s`.

        In slices of 1 ms, as on the real loop: a predicate that polls a port is asked again even
        when nothing happens by itself."""
        for _ in range(int(limit_s * 1000) + 1):
            if self.kernel.run_until(predicate, MS):
                return
        pytest.fail(f"nothing came of it in {limit_s} virtual s")

    def run_for(self, seconds: float) -> None:
        """Let virtual time pass."""
        self.kernel.run_for(int(seconds * SECOND_NS))

    def close(self) -> None:
        """Nothing outside this process was made."""
