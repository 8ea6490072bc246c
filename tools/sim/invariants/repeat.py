"""The same seed gives the same run (I11): the hash over all that happened is compared."""

from collections.abc import Callable

from tools.sim.invariants.names import Invariant, Violation


def check_repeats(run: Callable[[], str], times: int = 2) -> str:
    """`run()` gives the hash of one run (`kernel.trace.sha256()`), from a fresh world each time.
    The hash that all of them gave; raises Violation when they differ."""
    first = run()
    for number in range(1, times):
        other = run()
        if other != first:
            raise Violation(
                Invariant.REPEAT, 0, f"run {number + 1} is {other[:16]}, the first {first[:16]}"
            )
    return first
