"""Once the faults stop everything comes to rest in time (I7), and at rest nothing is lost: each
component that is wanted runs where the disk says, or has ended by itself as its policy allows, or
waits for a reason that is true by the judge's own sums (I1).
"""

from collections.abc import Callable, Collection, Mapping
from signal import SIGKILL
from typing import Final

from firmware.board_types import Module
from firmware.profiler import runtimes_of
from firmware.workload import Component, RestartPolicy, instance_name
from hal.mock.instance import MockInstance
from hal.mock.kernel import VirtualKernel
from hal.mock.slot import Slot
from hal.ports import ExitReason
from tools.sim.invariants.decided import Decided
from tools.sim.invariants.names import Fail, Invariant
from tools.sim.invariants.room import Room, total
from tools.sim.invariants.running import Running

# the longest of what may follow a fault: switching on again (30 s), a restart's pause (30 s), the
# wait for a lease (5.6 s), flushes that are tried for 25 s; each a few times over
RECOVERY_NS: Final = 240_000_000_000
LOOK_NS: Final = 1_000_000_000
STAYS: Final = 3  # looks in a row


class Rest:
    """Asked now and then from the time when the faults are over."""

    def __init__(
        self,
        kernel: VirtualKernel,
        running: Running,
        decided: Decided,
        modules: Mapping[str, Module],
        capacity: Mapping[str, Room],
        fail: Fail,
    ) -> None:
        self._kernel = kernel
        self._running = running
        self._decided = decided
        self._modules = modules
        self._capacity = capacity
        self._fail = fail
        self._slots = {slot.id: slot for slot in kernel.slots.values()}
        self._over_ns: int | None = None
        self._calm = 0
        self._turn = 0
        self.recovered_ns: int | None = None  # when it was first at rest after the faults
        self.on_rest: Callable[[], None] = lambda: None  # it is: what is said can be compared

    def faults_over(self, at_ns: int) -> None:
        """The bound counts from here."""
        self._over_ns, self.recovered_ns, self._calm = at_ns, None, 0
        self._turn += 1
        self._look_later(self._turn)

    def broken_again(self) -> None:
        """A new fault: what was not recovered from is not asked for any more."""
        self._over_ns = None
        self._turn += 1

    def finish(self) -> None:
        """Raises Violation if it should be at rest by now and is not."""
        if self._over_ns is not None and self._kernel.now_ns - self._over_ns >= RECOVERY_NS:
            why = self.why_not()
            if why:
                self._late(why)

    def why_not(self) -> str:
        """Why the models are not at rest; "" if they are. Raises Violation for what waits and
        need not."""
        decided, running = self._decided, self._running.now()
        if decided.deleted:
            return f"{min(decided.deleted)} is still being removed"
        wanted: dict[str, Component] = {}
        for name, workload in decided.workloads.items():
            for component in workload.components:
                for index in range(component.replicas):
                    wanted[instance_name(name, component.name, index)] = component
        for name in running:
            if name not in wanted:
                return f"{name} runs and is not wanted"
        waiting = []
        for name, component in wanted.items():
            held = decided.held.get(name)
            if name in running:
                cnm, generation, _ = running[name]
                if held is None or held.place != (cnm, generation) or held.target is not None:
                    return f"{name} runs on {cnm} as generation {generation}, decided is {held}"
            elif held is not None and held.ended:
                self._check_end(name, component)
            else:
                waiting.append(name)
        for name in waiting:
            if not self._may_wait(name, wanted[name], running, wanted):
                return f"{name} does not run"
        return ""

    def check_again(self, name: str) -> None:
        """Where it ended by itself it is to be started again. Raises Violation where its policy
        does not allow that."""
        policy = self._decided.component(name).restart.policy
        last = self._running.ended.get(name)
        if last is None or not _by_itself(last) or name in self._running.now():
            return
        assert last.exit is not None
        well = last.exit.reason is ExitReason.EXITED and last.exit.status == 0
        if policy is RestartPolicy.NO or (well and policy is RestartPolicy.ON_FAILURE):
            self._fail(Invariant.REVIVED, f"{name} ended by itself: {last.exit}")

    # --- inside ---

    def _look_later(self, turn: int) -> None:
        def look() -> None:
            if turn != self._turn or self._over_ns is None:
                return
            why = self.why_not()
            self._calm = 0 if why else self._calm + 1
            if self._calm >= STAYS:
                self.recovered_ns = self._kernel.now_ns
                self.on_rest()
            elif why and self._kernel.now_ns - self._over_ns > RECOVERY_NS:
                self._late(why)
            else:
                self._look_later(turn)

        self._kernel.after(LOOK_NS, look)

    def _late(self, why: str) -> None:
        self._fail(Invariant.RECOVERY, f"{RECOVERY_NS // 10**9} s after the last fault: {why}")

    def _check_end(self, name: str, component: Component) -> None:
        """It counts as ended for good: did it end by itself, and does its policy allow that?"""
        policy, limit = component.restart.policy, component.restart.max_attempts
        last = self._running.ended.get(name)
        tried = self._decided.held[name].attempts
        over = policy is RestartPolicy.NO or bool(limit and tried >= limit)
        if policy is RestartPolicy.ON_FAILURE and last is not None and last.exit is not None:
            over |= last.exit.reason is ExitReason.EXITED and last.exit.status == 0
        if not over:
            how = last.exit if last is not None else "it never ran"
            text = f"its policy is {policy}, {tried} of {limit or 'any'} attempts were made: {how}"
            self._fail(Invariant.LOST, f"{name} counts as ended; {text}")
        if last is not None and not _by_itself(last) and not _crashed(last):
            self._fail(Invariant.LOST, f"{name} counts as ended; it was ended: {last.exit}")

    def _may_wait(
        self,
        name: str,
        component: Component,
        running: Mapping[str, tuple[str, int, int]],
        wanted: Mapping[str, Component],
    ) -> bool:
        """It does not run. True when that may last: no module has room for it, or what it depends
        on does not run. Raises Violation for what is unplaced beside room."""
        workload = name.split("/", 1)[0]
        for needed in component.depends_on:
            others = [n for n in wanted if n.startswith(f"{workload}/{needed.component}/")]
            if any(other not in running for other in others):
                return True
        held = self._decided.held.get(name)
        if held is not None and held.place is not None:
            return False  # it has its place: it must come to run there
        if not _anywhere(component):
            return True
        need = self._running.most(component)
        for cnm, module in self._modules.items():
            if self._takes(cnm, component, module) and self._fits(cnm, need):
                return False
        return True

    def waits_beside_room(self) -> None:
        """At rest: raises Violation for what has no place although a module would take it."""
        running = self._running.now()
        for name, workload in self._decided.workloads.items():
            for component in workload.components:
                if not _anywhere(component) or component.depends_on:
                    continue
                need = self._running.most(component)
                for index in range(component.replicas):
                    instance = instance_name(name, component.name, index)
                    held = self._decided.held.get(instance)
                    if instance in running or (held is not None and (held.place or held.ended)):
                        continue
                    for cnm, module in self._modules.items():
                        if self._takes(cnm, component, module) and self._fits(cnm, need):
                            self._fail(Invariant.WAITS, f"{instance}: there is room on {cnm}")

    def waits_above_others(
        self, names: Collection[str], above: Callable[[str, str, Room, Room], bool]
    ) -> None:
        """At rest, and so long that the card had all the time that it takes for it: raises
        Violation for one of these that waits although `above(instance, module, its need, all that
        there is)` says that those below it could make room for it. Decidable only where nothing
        but room decides where it may go."""
        for name in sorted(names):
            component = self._decided.component(name)
            if not _anywhere(component) or component.depends_on:
                continue
            need = self._running.most(component)
            for cnm, module in self._modules.items():
                if self._takes(cnm, component, module) and above(
                    name, cnm, need, self._capacity[cnm]
                ):
                    self._fail(Invariant.ABOVE, f"{name}: those below it hold {cnm}")

    def _takes(self, cnm: str, component: Component, module: Module) -> bool:
        slot: Slot = self._slots[cnm]
        record = self._decided.cnms.get(cnm, {})
        return (
            slot.power_good
            and record.get("state") == "leased"
            and not record.get("draining")
            and bool(runtimes_of(component) & set(module.runtimes))
        )

    def _fits(self, cnm: str, need: Room) -> bool:
        """Whatever is there may have been measured to need more than it declares."""
        there = [
            self._running.most(self._decided.component(name))
            for name, held in sorted(self._decided.held.items())
            if any(other == cnm for other, _ in held.holds)
        ]
        return not total((*there, need)).over(self._capacity[cnm])


def _by_itself(one: MockInstance) -> bool:
    end = one.exit
    if end is None:
        return False
    return end.reason in (ExitReason.EXITED, ExitReason.OOM_KILLED) and not one.signals


def _crashed(one: MockInstance) -> bool:
    """It ended of a signal that nobody has sent; what kills for others sends SIGKILL."""
    end = one.exit
    if end is None or one.signals:
        return False
    return end.reason is ExitReason.SIGNALED and end.status != SIGKILL


def _anywhere(component: Component) -> bool:
    """Nothing but room decides where it may go."""
    placement = component.placement
    return not (
        component.volumes
        or component.resources.arch
        or component.resources.accelerators
        or placement.labels
        or placement.together
        or placement.max_per_cnm
    )
