"""Liveness: once everything is healed the card comes to rest within a bound, stays at rest, and
what is removed leaves nothing behind."""

from collections.abc import Mapping
from typing import Any, Final

from firmware.events import EventCode
from firmware.lease import LeaseState
from firmware.loop import MS
from firmware.restarts import MOST_NS
from tools.sim.invariants.preempted import RIPE_NS
from tools.sim.invariants.room import Room
from tools.sim.workloads import ENDS_BY_ITSELF, MAY_HAVE_ENDED, Tenants, kind_of
from tools.sim.world import SECOND, RpcFailure, World, waits_for_pending

LOOK_NS: Final = SECOND // 10  # between two looks at whether the card is at rest
STAYS_NS: Final = 2 * SECOND  # nothing happens for so long: it is at rest
WAITS: Final = 4  # fences that may have to follow each other before the last component runs
BOOTS_S: Final = 30.0  # for modules and daemon to boot, images and volumes to be staged
DARK_S: Final = 10.0  # after the longest fence: for the disk and the supply
GONE_S: Final = 3.0  # for what is emptied in the background


class Rest:
    """What must hold when nothing breaks any more."""

    def __init__(self, world: World, tenants: Tenants) -> None:
        self.world = world
        self.tenants = tenants
        timing = world.board.timing
        self._report_ns = timing.telemetry_ms * MS * 5 // 4  # by slow clocks as well
        self._dark_s = timing.fence_wait_ms / 1000 + DARK_S
        self.limit_s = BOOTS_S + MOST_NS / SECOND + WAITS * timing.fence_wait_ms / 1000

    def come(self) -> None:
        """To rest: every module leased, all that is wanted runs. Raises Violation."""
        world = self.world
        for module in world.modules.values():
            module.load(0)
        world.start_daemon()
        self._within(self._not_up, "every module leased")
        # a report tells of the time since the one before: the first may still be of a busy module
        world.kernel.run_for(self._report_ns)
        for name in world.modules:
            world.call("cnm.undrain", id=name)
        self._within(world.unsettled, "at rest")
        self._check_rest()

    def stay(self, span_ns: int) -> None:
        """What runs goes on as it is, all that time; but it may be moved to make room for what
        waits, if that then runs, and be stopped for what is above it. Raises Violation."""
        before, waited = self._steady(), self._waiting()
        stopped = self._stopped_for_others()
        self.world.kernel.run_for(span_ns)
        if self._steady() == before:
            self._check_above(waited & self._waiting(), span_ns)
            return
        if self._stopped_for_others() > stopped:
            self._within(self.world.unsettled, "at rest after some were stopped for others")
            self.stay(span_ns)  # there are not many, and what runs is above what ran each time
            return
        if waited:
            self._within(self.world.unsettled, "at rest again")
        after = self._steady()
        if self._waiting() < waited and before.keys() <= after.keys():
            self.stay(span_ns)  # fewer wait each time
            return
        changed = sorted(set(before.items()) ^ set(after.items()))
        self.world.judge.fail("rest without rest", f"nobody asked for it: {changed[:8]}")

    def off_and_on(self, name: str) -> None:
        """A module that is switched off goes dark as soon as its lease may be over, and stays dark;
        switched on, it is used again. Raises Violation."""
        world, slot = self.world, self.world.modules[name].slot
        self.tenants.switch(name, on=False)
        end_ns = world.kernel.now_ns + int(self._dark_s * SECOND)
        while slot.power_good:
            if world.kernel.now_ns >= end_ns:
                world.judge.fail(
                    "it is to be off and has power",
                    f"{name}: not off within {self._dark_s:.0f} s\n{self._state()}",
                )
            world.kernel.run_for(LOOK_NS)
        world.kernel.run_for(STAYS_NS)
        if slot.power_good:
            world.judge.fail("it is to be off and has power", f"{name}\n{self._state()}")
        self._within(self._not_up, "every module leased, after one was off")
        self._within(world.unsettled, "at rest, after a module was off")
        self._check_rest()

    def _stopped_for_others(self) -> int:
        return sum(event.code == EventCode.INSTANCE_PREEMPTED for event in self.world.events)

    def _check_above(self, waiting: set[str], span_ns: int) -> None:
        """What has waited all that time, at rest, waits for nobody of a lower priority."""
        judge = self.world.judge
        if span_ns >= self.world.board.thresholds.room_ms * MS + RIPE_NS:
            judge.rest.waits_above_others(waiting, judge.preempted.waits_above)

    def _waiting(self) -> set[str]:
        return {name for name, row in self.world.ps().items() if row["phase"] == "PENDING"}

    def remove(self) -> None:
        """All workloads. Raises Violation."""
        for name in self.tenants.names:
            try:
                self.world.remove(name)
            except RpcFailure as failure:
                if failure.code != "unknown_workload":
                    self.world.judge.fail("a removal was refused", f"{name}: {failure}")
        self._within(self.world.unsettled, "everything removed")

    def gone(self, span_ns: int) -> None:
        """After `span_ns`, and no less than `GONE_S`: nothing runs, and no disk knows of anything.
        Raises Violation."""
        world = self.world
        world.kernel.run_for(max(span_ns, int(GONE_S * SECOND)))
        left = [key for key in world.disk.journal.durable if key[0] in ("workload", "assignment")]
        on_modules = {name: sorted(module.leftovers()) for name, module in world.modules.items()}
        found = {name: things for name, things in on_modules.items() if things}
        if world.running() or left or found:
            world.judge.fail("left behind", f"{world.running()} {sorted(left)} {found}")

    def _within(self, why_not: object, what: str) -> None:
        """Until `why_not()` has been "" and nothing has happened for a while."""
        assert callable(why_not)
        world, kernel = self.world, self.world.kernel
        end_ns = kernel.now_ns + int(self.limit_s * SECOND)
        calm_since_ns, said = kernel.now_ns, -1
        while True:
            why = why_not() or ("something happened" if said != len(world.events) else "")
            said = len(world.events)
            if not why and kernel.now_ns - calm_since_ns >= STAYS_NS:
                return
            if why:
                if kernel.now_ns >= end_ns:
                    world.judge.fail(
                        "no rest",
                        f"{what}: not within {self.limit_s:.0f} s: {why}\n{self._state()}",
                    )
                calm_since_ns = kernel.now_ns + LOOK_NS
            kernel.run_for(LOOK_NS if why else STAYS_NS)

    def _not_up(self) -> str:
        """Who is to be off is asked to be on, as often as it takes."""
        wanted = self.world.judge.decided.cnms
        for name in self.world.modules:
            if not wanted.get(name, {}).get("power_wanted", True):
                self.tenants.switch(name, on=True)
                return f"{name} is to be off"
            if self.world.lease(name) is not LeaseState.LEASED:
                return f"{name} is {self.world.lease(name)}"
        return ""

    def _check_rest(self) -> None:
        """What is wanted runs, or has ended by itself, or waits for room that is not there."""
        why = self.world.judge.rest.why_not()
        if why:  # the card says that it is at rest: do its modules and its disk?
            self.world.judge.fail("at rest, it says", why)
        rows = self.world.ps()
        for name, row in rows.items():
            if kind_of(name) in MAY_HAVE_ENDED | ENDS_BY_ITSELF or row["phase"] == "RUNNING":
                continue
            if row["phase"] == "PENDING":
                self._check_no_room(name, rows)
            elif not waits_for_pending(row, rows):
                self.world.judge.fail("a component is lost", f"{name}: {row}")
        self.tenants.check_acknowledged()

    def _check_no_room(self, instance: str, rows: Mapping[str, Any]) -> None:
        """It is pending: no module has the room that it asks for. What waits at its place for
        another component that is pending has its room there, though it does not run."""
        need = self.world.judge.room_of(self.world.components[instance])
        held = {name: Room() for name in self.world.modules}
        running = self.world.running()
        places = {name: cnm for name, (cnm, _, _) in running.items()}
        for name, row in rows.items():
            if name not in running and row["cnm"] is not None and waits_for_pending(row, rows):
                places[name] = row["cnm"]
        for name, cnm in places.items():
            held[cnm].add(self.world.judge.room_of(self.world.components[name]))
        for slot in self.world.board.slots:
            held[slot.id].add(need)
            if not held[slot.id].over(Room.in_module(slot.module)):
                why = rows[instance]["reason"]
                self.world.judge.fail("pending beside room", f"{instance} on {slot.id}: {why}")

    def _steady(self) -> dict[str, tuple[str, int, int]]:
        """What runs and does not end by itself, nor waits for what does."""
        return {
            name: place
            for name, place in self.world.running().items()
            if kind_of(name) not in ENDS_BY_ITSELF
        }

    def _state(self) -> str:
        """The card as it says that it is, for whoever reads the report."""
        world = self.world
        rows = [
            f"  {name} {row['phase']} {row['cnm']} g{row['generation']} {row['reason']}"
            for name, row in world.ps_or_nothing().items()
            if row["phase"] != "RUNNING"
        ]
        said = [
            f"  {event.mono_ms} {event.code} {event.cnm or ''} {event.instance or ''} {event.text}"
            for event in world.events[-20:]
        ]
        return "\n".join([*rows[:20], "events:", *said])
