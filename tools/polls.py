"""Looking again and again until a time is up."""

from collections.abc import Iterator

from hal.linux.clock import LinuxClock


def polls(timeout_ms: int, *, step_ms: int) -> Iterator[int]:
    """Milliseconds waited so far, at once and then a step at a time, until the time is up."""
    clock = LinuxClock()
    try:
        start_ns = clock.now_ns()
        waited_ms = 0
        while waited_ms <= timeout_ms:
            yield waited_ms
            clock.wait(clock.now_ns() + step_ms * 1_000_000)
            waited_ms = (clock.now_ns() - start_ns) // 1_000_000
    finally:
        clock.close()
