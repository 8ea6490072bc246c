"""A fault stays on its module: no other one is suspected, fenced or quarantined, and none loses an
instance that nobody decided to end (I9). And a module that dies is noticed in time (I7).

The first is judged only in runs whose faults are told (`injected`), and only for modules that had
no fault of their own, and the card none, within the last `AFTER_NS`: what a fault sets off (a
fence, a reboot, switching on again) goes on for a while after it.
"""

from collections.abc import Callable
from typing import Any, Final, Protocol

from firmware.board_types import Timing
from firmware.lease import LeaseState, silence_ms
from firmware.loop import MS
from hal.mock.instance import SIGKILL, MockInstance
from hal.mock.kernel import VirtualKernel
from hal.mock.slot import Slot
from hal.ports import ExitReason
from tools.sim.invariants.decided import Decided
from tools.sim.invariants.names import Fail, Invariant
from tools.sim.invariants.running import Running, instance_of

AFTER_NS: Final = 60_000 * MS  # the longest pause before a module is switched on, twice
LOST_NS: Final = 3_000 * MS  # by then whatever ended an instance has been decided, if it was
NOTICE_MARGIN_NS: Final = 200 * MS
LOOKS: Final = 8  # while a death should be noticed: was the daemon stopped meanwhile?
DAEMON: Final = "daemon"
STRUCK: Final = frozenset({"cnm.suspect", "cnm.fencing", "cnm.fenced", "cnm.quarantined"})


class Injected(Protocol):
    """What is read of a fault that was injected (`tools.sim.faults.Injection`)."""

    @property
    def id(self) -> str: ...

    @property
    def cnm(self) -> str | None: ...

    @property
    def at_ns(self) -> int: ...

    @property
    def text(self) -> str: ...

    @property
    def lasts_ns(self) -> int: ...

    @property
    def cut_short(self) -> bool: ...

    @property
    def seen(self) -> Callable[[], bool]: ...


class Spread:
    """Who had a fault when, and who was struck."""

    def __init__(
        self,
        kernel: VirtualKernel,
        running: Running,
        decided: Decided,
        timing: Timing,
        card: Callable[[], Any],
        fail: Fail,
    ) -> None:
        """`card()`: the daemon's Card, None while none runs."""
        self._kernel = kernel
        self._running = running
        self._decided = decided
        self._card = card
        self._fail = fail
        self._notice_ns = silence_ms(timing) * MS + NOTICE_MARGIN_NS
        self._told = False
        self._until: dict[str | None, int] = {}  # whose -> its last fault has ended by then

    def injected(self, injection: Injected) -> None:
        """A fault acts from now on."""
        self._told = True
        end_ns = injection.at_ns + injection.lasts_ns
        self._until[injection.cnm] = max(end_ns, self._until.get(injection.cnm, 0))

    def switched(self, cnm: str) -> None:
        """A person has its power switched: what follows is wanted."""
        self._until[cnm] = max(self._kernel.now_ns, self._until.get(cnm, 0))

    def faults_over(self, at_ns: int) -> None:
        """All of them have ended."""
        for cnm, until_ns in self._until.items():
            self._until[cnm] = min(until_ns, at_ns)

    def excused(self, cnm: str | None) -> bool:
        """It has, or had lately, a fault of its own; or the card has."""
        if not self._told:
            return True
        since_ns = self._kernel.now_ns - AFTER_NS
        return any(self._until.get(who, -AFTER_NS) >= since_ns for who in (cnm, None))

    def event(self, code: str, cnm: str | None, text: str) -> None:
        """The daemon says something of a module. Raises Violation."""
        if code in STRUCK and not self.excused(cnm):
            self._fail(Invariant.SPREAD, f"{code} without a fault of its own: {text}")

    def ended(self, one: MockInstance) -> None:
        """An instance ended. Looked at later: a stop that was decided shows on the disk by then."""
        if not self._told or one.exit is None or self.excused(one.place):
            return
        if one.exit.reason is not ExitReason.SIGNALED or one.exit.status != SIGKILL:
            return  # it ended by itself, or had too much memory
        name, generation = instance_of(one)
        place = (one.place, generation)

        def look() -> None:
            held = self._decided.held.get(name)
            still = held is not None and held.place == place and not held.target and not held.ended
            still = still and held is not None and not held.evicting
            wanted = name.split("/", 1)[0] in self._decided.wanted
            if still and wanted and name not in self._running.now() and not self.excused(place[0]):
                self._fail(Invariant.SPREAD, f"{name} was killed on {place[0]}, nobody decided so")

        self._kernel.after(LOST_NS, look)

    # --- a death is noticed ---

    def dark(self, slot: Slot) -> None:
        """A module has died at once: its daemon may not go on for long as if nothing was."""
        card, node = self._card(), self._kernel.nodes.get(DAEMON)
        if card is None or node is None or node.paused or not card.ready:
            return
        cnm = card.inventory.get(slot.id)
        if cnm is None or cnm.lease.state is not LeaseState.LEASED:
            return
        boot_id, incarnation, clock = cnm.boot_id, node.incarnation, node.clock
        end_ns = clock.now_ns() + self._notice_ns  # on its own clock

        def look() -> None:
            if node.incarnation != incarnation or node.paused:
                return
            if clock.now_ns() < end_ns:
                self._kernel.after(self._notice_ns // LOOKS, look)
            elif cnm.lease.state is LeaseState.LEASED and cnm.boot_id == boot_id:
                self._fail(
                    Invariant.DETECTION,
                    f"{slot.id} died {self._notice_ns // MS} ms ago and counts as leased",
                )

        self._kernel.after(self._notice_ns // LOOKS, look)
