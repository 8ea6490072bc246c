"""The judge: what must hold at every moment of a simulated card, whatever breaks.

It believes nobody. What runs is what the kernel's slots hold alive; what was decided is what the
card's disk holds; the board says how large a module is. The invariants are in
`tools.sim.invariants`; here they are told of what happens, at the moment when it does. A broken
one raises `Violation`, and the judge keeps it: a program that swallows it is found out at the end.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn

from firmware.board_types import Board
from firmware.cnm.records import UNSTARTED
from firmware.lease import LeaseState, silence_ms
from firmware.loop import MS
from firmware.rpc import Dispatcher, MethodTable
from firmware.workload import Component
from hal.mock.disk import Disk
from hal.mock.instance import MockInstance
from hal.mock.kernel import VirtualKernel
from hal.mock.slot import Slot
from hal.ports import JournalStore
from tools.sim.invariants.asked import WatchedDispatcher
from tools.sim.invariants.bounds import Bounds
from tools.sim.invariants.decided import Decided
from tools.sim.invariants.names import Invariant, Violation
from tools.sim.invariants.obeyed import Obeyed
from tools.sim.invariants.order import Order
from tools.sim.invariants.preempted import Preempted
from tools.sim.invariants.rest import Rest
from tools.sim.invariants.room import Room
from tools.sim.invariants.running import Running, Started, instance_of
from tools.sim.invariants.spread import Injected, Spread
from tools.sim.invariants.stored import Stored
from tools.sim.invariants.told import Told

__all__ = ["Injected", "Invariant", "Judge", "Started", "Violation", "instance_of"]

LOOK_NS: Final = 1_000_000_000  # between two looks at what grows
HEARD_NS: Final = 2_000_000_000  # by then a start was reported, lost frames and all
STRANGE_LOOKS: Final = 5
REPLAY_LOOKS_MS: Final = (5, 10, 20, 40, 80, 160)
SILENT: Final = "silent"
LOOKS_A_PS: Final = 10  # it is dear
LOOKS_A_ROUND: Final = 8  # a part of the modules each time
INSTANCES_MOST: Final = 4096  # of a whole card, and as many that are going
LAST_LINES: Final = 40


class Judge:
    """Install once, before anything runs; `card` and the modules' programs come later."""

    def __init__(
        self,
        kernel: VirtualKernel,
        disk: Disk,
        components: Mapping[str, Component],
        board: Board,
    ) -> None:
        """`components` by instance: what was submitted, answered or not."""
        self.kernel = kernel
        self.capacity = {  # for whoever makes sums of its own: CNM -> cpu_milli, memory_bytes
            slot.id: (slot.module.cores_milli, slot.module.memory_bytes) for slot in board.slots
        }
        self.violation: Violation | None = None  # the first
        self.card: Callable[[], Any] = lambda: None  # the daemon's Card while one runs
        self.control: Callable[[], Any] = lambda: None  # and its control socket
        self.daemon_ns: Callable[[], int] = lambda: kernel.now_ns  # by the daemon's clock
        self.modules: Mapping[str, Any] = {}  # SimModule by CNM
        room = {slot.id: Room.in_module(slot.module) for slot in board.slots}
        self.decided = Decided(kernel, components, room, self.fail)
        self._running = Running(
            kernel, self.decided.component, self.decided.generations, room, self.fail
        )
        self.stored = Stored(disk.journal, self.fail)
        self.bounds = Bounds(kernel, self.fail)
        self.told = Told(self.fail)
        self.spread = Spread(
            kernel, self._running, self.decided, board.timing, lambda: self.card(), self.fail
        )
        self._obeyed = Obeyed(kernel, self._running, self.decided, self._guarded, self.fail)
        self.rest = Rest(
            kernel,
            self._running,
            self.decided,
            {slot.id: slot.module for slot in board.slots},
            room,
            self.fail,
        )
        self.rest.on_rest = self._at_rest
        self.preempted = Preempted(lambda: self.daemon_ns(), self.decided, board, self.fail)
        self.decided.on_evict = lambda name, evict, moving: self.preempted.decided(
            name, evict, moving=moving
        )
        self.decided.on_again = self.rest.check_again
        self.starts: Sequence[Started] = self._running.starts
        self._order = Order(self.decided, self.fail)
        self._running.on_start.append(self._order.started)
        self.on_start = self._running.on_start  # more to check at each start
        self._round = self._looks = 0
        self._silence_ns = silence_ms(board.timing) * MS
        self._strange: Counter[tuple[str, str]] = Counter()  # looks in a row
        kernel.on_change = self._changed
        disk.journal.on_commit = self.decided.commit
        kernel.after(LOOK_NS, self._look_at_sizes)

    # --- looking ---

    def running(self) -> dict[str, tuple[str, int, int]]:
        """instance -> (CNM, generation, pid) of what is alive; not to be changed."""
        return self._running.now()

    def starts_of(self, instance: str) -> list[Started]:
        return [start for start in self.starts if start.instance == instance]

    def room_of(self, component: Component) -> Room:
        """The most that an instance of it may hold or wait for."""
        return self._running.most(component)

    def fail(self, invariant: str, text: str) -> NoReturn:
        """Raises Violation, with what is needed to see it again."""
        last = "\n".join(
            f"  {entry.at_ns / 1e9:.6f} {entry.who} {entry.what} {entry.detail}"
            for entry in self.kernel.trace.entries()[-LAST_LINES:]
        )
        violation = Violation(
            invariant,
            self.kernel.now_ns,
            text,
            f"seed {self.kernel.seed}, {self.kernel.now_ns / 1e9:.6f} s; "
            f"last of the trace:\n{last}",
        )
        self.violation = self.violation or violation
        raise violation

    # --- what the run tells it ---

    def injected(self, injection: Injected) -> None:
        """A fault acts from now on: for the blast radius and for truthful reporting."""
        self.rest.broken_again()
        self.spread.injected(injection)
        self.told.injected(injection)

    def stale_command(self, instance: str, text: str) -> None:
        """A command that is out of date arrives, and would end `instance`; `text` names it."""
        self._obeyed.stale_command(instance, text)

    def replayed(self, cnm: str) -> None:
        """Commands of before come to that module once more, from now on for a moment."""

        def look() -> None:
            init = self.modules[cnm].init
            found = init.table.listing() if init is not None else ()
            unstarted = [(one.name, one.generation) for one in found if one.state in UNSTARTED]
            self._obeyed.replayed(unstarted, cnm)

        for after_ms in REPLAY_LOOKS_MS:
            self.kernel.after(after_ms * MS, look)

    def faults_over(self, at_ns: int) -> None:
        """Everything is healed: from `at_ns` on the bounds of recovery count."""
        self.spread.faults_over(at_ns)
        self.rest.faults_over(at_ns)

    def finish(self) -> None:
        """The checks at the end of a run. Raises Violation, that of before too if nobody has
        listened to it."""
        if self.violation is not None:
            raise self.violation
        self.told.finish()
        self.rest.finish()
        self._look_at(list(self.modules))

    # --- what the card's programs are given ---

    def store(self, store: JournalStore) -> JournalStore:
        """The daemon's journal store, watched."""
        return self.stored.watch(store)

    def dispatcher(self, table: MethodTable) -> Dispatcher:
        """The daemon's dispatcher, watched."""
        return WatchedDispatcher(table, self.decided)

    def daemon_starts(self) -> None:
        """A daemon begins."""
        self.told.daemon_starts()

    def daemon_is_up(self) -> None:
        """A daemon works with what it has read."""
        card = self.card()
        self.stored.card_is_up(card.journal.raw if card is not None else None)

    def event(self, event: Any) -> None:
        """The daemon has recorded one."""
        code = str(event.code)
        self.told.event(code, event.mono_ms)
        self.spread.event(code, event.cnm, event.text)

    def unhandled(self, node: str, exc: BaseException) -> bool:
        """The fault policy of every loop: an exception that leaves a handler is a violation."""
        if isinstance(exc, Violation):
            return False
        if not isinstance(exc, Exception):
            return False
        try:
            self.fail(Invariant.EXCEPTION, f"{node}: {type(exc).__name__}: {exc}")
        except Violation as violation:
            raise violation from exc

    # --- inside ---

    def _changed(self, what: str, model: object) -> None:
        if isinstance(model, MockInstance):
            if what == "start":
                self._running.begun(model)
            else:
                self._running.over(model)
                self.spread.ended(model)
                self._obeyed.ended(model)
        elif isinstance(model, Slot):
            self.spread.dark(model)

    def _guarded(self, cnm: str, instance: str) -> bool:
        """A module's init has a lease, and has not doomed this instance."""
        module = self.modules.get(cnm)
        node = self.kernel.nodes.get(f"{cnm}/init")
        if module is None or module.init is None or node is None:
            return False
        found = module.init.table.find(instance)
        lives = module.init.guard.fresh(node.clock.now_ns())
        return bool(lives and found is not None and not found.doom)

    def _look_at_memory(self, card: Any) -> None:
        """What the card holds of its modules is what its disk has, and what it leases is heard. A
        decision may be on its way, or the daemon held up: not for so many looks in a row."""
        if self.kernel.nodes["daemon"].paused:
            self._strange.clear()
            return
        strange = Counter(
            (cnm.id, word)
            for cnm in card.inventory
            for word, usual in (("draining", False), ("power_wanted", True))
            if getattr(cnm, word) != self.decided.cnms.get(cnm.id, {}).get(word, usual)
        )
        now_ns = self.kernel.nodes["daemon"].clock.now_ns()
        strange.update(
            (cnm.id, SILENT)
            for cnm in card.inventory
            if cnm.lease.state is LeaseState.LEASED
            and cnm.heartbeat_ns is not None
            and now_ns - cnm.heartbeat_ns > self._silence_ns
        )
        for cnm, word in strange:
            strange[cnm, word] += self._strange[cnm, word]
            if strange[cnm, word] < STRANGE_LOOKS:
                continue
            if word == SILENT:
                self.fail(Invariant.DETECTION, f"{cnm} is silent and counts as leased")
            else:
                disk = self.decided.cnms.get(cnm, {}).get(word)
                self.fail(Invariant.FORGOTTEN, f"{cnm}: {word} is {disk} on disk")
        self._strange = strange

    def _look_at_sizes(self) -> None:
        names = list(self.modules)
        card, self._looks = self.card(), self._looks + 1
        if card is not None and card.ready and self._looks % LOOKS_A_PS == 0:
            self.told.at_any_time(card.views.instances(None), self._running.ever)
        self._look_at(names[self._round :: LOOKS_A_ROUND])
        self._round = (self._round + 1) % LOOKS_A_ROUND
        self.kernel.after(LOOK_NS, self._look_at_sizes)

    def _look_at(self, names: Sequence[str]) -> None:
        card = self.card()
        if card is not None:
            if card.ready:
                self._look_at_memory(card)
                self.decided.daemon_works(
                    self.kernel.nodes["daemon"].incarnation, card.decisions.epoch
                )
            self.bounds.card(card, self.control(), len(self.modules), INSTANCES_MOST)
        for name in names:
            cnm = card.inventory.get(name) if card is not None else None
            if cnm is not None:
                self.bounds.card_end(cnm)
            module = self.modules[name]
            nodes = (module.init_node, module.agent_node)
            self.bounds.module(module.init, module.agent, nodes, name)

    def _at_rest(self) -> None:
        self.rest.waits_beside_room()
        card = self.card()
        if card is not None and card.ready:
            slots = {slot.id: slot for slot in self.kernel.slots.values()}
            rows, cnms = card.views.instances(None), card.views.cnms()
            self.decided.at_rest(card.placer.state.instances())
            fresh = self._running.begun_after(self.kernel.now_ns - HEARD_NS)
            self.told.at_rest(rows, cnms, self.running(), slots, fresh)
