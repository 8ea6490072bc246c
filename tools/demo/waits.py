"""Waiting for something to be seen, with a deadline, on the clock port."""

from collections.abc import Callable
from typing import Final, TypeVar

from hal.ports import Clock
from tools.demo.errors import StepFailed

MS: Final = 1_000_000  # ns
POLL_MS: Final = 30

T = TypeVar("T")


def pause(clock: Clock, ms: int) -> None:
    """Let the machine do its work."""
    clock.wait(clock.now_ns() + ms * MS)


def wait_for(
    clock: Clock,
    what: str,
    look: Callable[[], T | None],
    *,
    timeout_ms: int,
    every_ms: int = POLL_MS,
    seen: Callable[[], str] = lambda: "",
) -> T:
    """The first thing that `look` gives that is true. Raises StepFailed at the deadline, with what
    `seen` says of the matter."""
    deadline_ns = clock.now_ns() + timeout_ms * MS
    while True:
        found = look()
        if found:
            return found
        if clock.now_ns() >= deadline_ns:
            words = seen()
            raise StepFailed(
                f"{what}: not so after {timeout_ms / 1000:g} s" + (f"; {words}" if words else "")
            )
        pause(clock, every_ms)
