"""What runs is ended only by a decision that is on disk, or with its lease, its module or itself.

A command that is out of date ends nothing (I2): one from another card or a former epoch, for
another boot or a lower generation. Who lets such a command out of the wire tells the judge before.
And whatever else breaks on a module that lives (its agent, its links), what runs goes on (I9).
"""

from collections.abc import Callable, Iterable
from typing import Final

from firmware.loop import MS
from hal.mock.instance import SIGKILL, MockInstance
from hal.mock.kernel import VirtualKernel
from hal.ports import ExitReason
from tools.sim.invariants.decided import Decided
from tools.sim.invariants.names import Fail, Invariant
from tools.sim.invariants.running import Running, instance_of

ARRIVES_NS: Final = 200 * MS  # by then it has come and a stop has sent its signal
SETTLED_NS: Final = 10_000 * MS  # no request lives as long: nothing else is under way by then
# a stop that was taken back may lie in a hung agent until its init replaces it, after 10 s
RECALLED_NS: Final = 20_000 * MS


class Obeyed:
    """Looks at each end of what runs."""

    def __init__(
        self,
        kernel: VirtualKernel,
        running: Running,
        decided: Decided,
        guarded: Callable[[str, str], bool],
        fail: Fail,
    ) -> None:
        """`guarded(cnm, instance)`: that module's init lives and has a lease, and has not ended
        the instance for want of one."""
        self._kernel = kernel
        self._running = running
        self._decided = decided
        self._guarded = guarded
        self._fail = fail
        self._stale: dict[str, tuple[int, str]] = {}  # instance -> until when, and what

    def stale_command(self, name: str, text: str) -> None:
        """It arrives now, and would end `name`."""
        if self._running.alive(name) is not None:
            self._stale[name] = (self._kernel.now_ns + ARRIVES_NS, text)

    def replayed(self, table: Iterable[tuple[str, int]], cnm: str) -> None:
        """`table`: what that module is making ready, just after old commands came once more. What
        has been started once is never staged again. Raises Violation."""
        for name, generation in table:
            if self._running.ever(name, generation):
                self._fail(Invariant.OBEYED, f"{name} g{generation} is staged again on {cnm}")

    def ended(self, one: MockInstance) -> None:
        """Raises Violation for one that was stopped, and nobody has decided so: not lately either,
        for a stop that was taken back may be on its way."""
        name, generation = instance_of(one)
        until_ns, text = self._stale.pop(name, (0, ""))
        end, held, now_ns = one.exit, self._decided.held.get(name), self._kernel.now_ns
        if end is None or held is None:
            return
        lately_ns = SETTLED_NS
        if held.spared:  # and who has its signal has its grace
            lately_ns = RECALLED_NS + self._decided.component(name).stop_grace_ms * MS
        if now_ns - held.at_ns < lately_ns:
            return
        stopped = one.signals or (end.reason is ExitReason.SIGNALED and end.status == SIGKILL)
        if (
            not stopped
            or held.place != (one.place, generation)
            or held.target is not None
            or held.evicting
            or held.ended
            or held.workload not in self._decided.wanted
            or not self._guarded(one.place, name)
        ):
            return
        if now_ns <= until_ns:
            self._fail(Invariant.OBEYED, f"{text} has ended {name} on {one.place}")
        self._fail(Invariant.SPREAD, f"{name} was stopped on {one.place}, nobody decided so")
