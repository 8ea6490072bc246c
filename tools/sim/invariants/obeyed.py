"""A command that is out of date changes nothing (I2): one from another card or a former epoch, for
another boot or a lower generation. Who lets such a command out of the wire tells the judge before,
and what it names must go on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from firmware.loop import MS
from hal.mock.instance import SIGKILL, MockInstance
from hal.mock.kernel import VirtualKernel
from hal.ports import ExitReason
from tools.sim.invariants.decided import Decided, Held
from tools.sim.invariants.names import Fail, Invariant
from tools.sim.invariants.running import Running, instance_of

ARRIVES_NS: Final = 200 * MS  # by then it has come and a stop has sent its signal
SETTLED_NS: Final = 10_000 * MS  # no request lives as long: nothing else is under way by then


@dataclass(frozen=True, slots=True, kw_only=True)
class _Watched:
    one: MockInstance
    held: Held
    init: object
    until_ns: int
    text: str


class Obeyed:
    """Looks at each end of what such a command named."""

    def __init__(
        self,
        kernel: VirtualKernel,
        running: Running,
        decided: Decided,
        guarded: Callable[[str], object],
        fail: Fail,
    ) -> None:
        """`guarded(cnm)`: what stands for that module's init, or None while its lease is over."""
        self._kernel = kernel
        self._running = running
        self._decided = decided
        self._guarded = guarded
        self._fail = fail
        self._watched: dict[str, _Watched] = {}  # by instance

    def stale_command(self, name: str, text: str) -> None:
        """It arrives now, and would end `name`. Nobody else may want that: nothing was decided
        about it lately, and its module and its lease live."""
        now_ns = self._kernel.now_ns
        one, held = self._running.alive(name), self._decided.held.get(name)
        if one is None or held is None or now_ns - held.at_ns < SETTLED_NS:
            return
        init = self._guarded(one.place)
        if init is not None and held.place is not None and held.target is None:
            until_ns = now_ns + ARRIVES_NS
            self._watched[name] = _Watched(
                one=one, held=held, init=init, until_ns=until_ns, text=text
            )

    def ended(self, one: MockInstance) -> None:
        """Raises Violation for one that was stopped by what it had to refuse."""
        name, _ = instance_of(one)
        watched = self._watched.pop(name, None)
        if watched is None or watched.one is not one or self._kernel.now_ns > watched.until_ns:
            return
        end = one.exit
        killed = end is not None and end.reason is ExitReason.SIGNALED and end.status == SIGKILL
        if (
            (killed or one.signals)
            and self._decided.held.get(name) is watched.held
            and watched.held.workload in self._decided.wanted
            and self._guarded(one.place) is watched.init
        ):
            self._fail(Invariant.OBEYED, f"{watched.text} has ended {name} on {one.place}")
