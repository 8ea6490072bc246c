"""Virtual time, the event heap, and the order in which the nodes' loops run.

One rule makes a run repeatable: at one point in time the nodes that have work are stepped in the
order in which they were made, round after round, until none has any; only then does time move,
to the next event or the next timer of a node. Ties between events go by the order in which they
were scheduled. All randomness is drawn from `rng(name)`, streams that depend only on the seed
and the name, so that a new user of randomness doesn't shift the others.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import random
from collections.abc import Callable
from typing import Final, TypeAlias

from hal.errors import LinkDown, Refused, Unavailable
from hal.mock.cxl import MockCxlHost
from hal.mock.instance import Behaviours
from hal.mock.line import MockLine, MockStream
from hal.mock.node import EVENTS, READ, Handle, Loop, Node
from hal.mock.pci_bus import PciTree
from hal.mock.program import Factory, Programs
from hal.mock.slot import Slot
from hal.mock.smbus_bus import MockSmbusBus
from hal.mock.trace import Trace
from hal.mock.window import MockWindowPair
from hal.ports import Event

BOOT_NS: Final = 1_000_000_000  # CLOCK_BOOTTIME at the start: never 0, which tests like too much
STEP_LIMIT: Final = 1_000_000  # steps without time moving: a livelock
FIRST_HANDLE: Final = 1000  # far from real descriptors, so that a mix-up shows


_Call: TypeAlias = Callable[[], None]
_Cell: TypeAlias = list["_Call | None"]  # of a call that can be cancelled: None then
# kernel time, order of scheduling, and a cell, or a line's call and the bytes for it
_Due: TypeAlias = tuple[int, int, _Cell] | tuple[int, int, Callable[[bytes], None], bytes]


class LivelockError(Exception):
    """The nodes keep each other busy and time can't move: a bug of whoever runs on them."""


class VirtualKernel:
    """The world that everything in `hal.mock` lives in. One thread, no real waiting."""

    def __init__(self, seed: int, *, step_limit: int = STEP_LIMIT) -> None:
        self.seed = seed
        self.now_ns = BOOT_NS
        self.trace = Trace()
        self.handles: dict[int, Handle] = {}
        self.nodes: dict[str, Node] = {}
        self.programs = Programs(self)
        self.slots: dict[int, Slot] = {}
        self.lines: dict[str, MockLine] = {}
        self.windows: dict[str, MockWindowPair] = {}
        self.smbus: dict[str, MockSmbusBus] = {}
        self.pci = PciTree()
        self.cxl = MockCxlHost(self)
        self.behaviours = Behaviours()  # what instances do, by argv
        # told at once: an instance has begun or ended, a slot went dark; invariants look here
        self.on_change: Callable[[str, object], None] = lambda _what, _model: None
        self.observers: list[
            Callable[[Node], None]
        ] = []  # after steps that noted anything: invariants look
        self.steps = 0
        self._looked_at = -1  # the trace's count when the observers looked last
        self._step_limit = step_limit
        self._idle_steps = 0  # since time moved last
        self._events: list[_Due] = []
        self._event_seq = 0
        self._dues: list[tuple[int, int]] = []  # (kernel time, node index)
        self._by_index: list[Node] = []
        self._queue: list[Node] = []
        self._next_handle = FIRST_HANDLE
        self._rngs: dict[str, random.Random] = {}

    # --- randomness and records ---

    def rng(self, name: str) -> random.Random:
        """The stream of randomness of that name; the same object each time."""
        if name not in self._rngs:
            digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
            self._rngs[name] = random.Random(digest)  # noqa: S311  a simulator, not a key
        return self._rngs[name]

    def note(self, who: str, what: str, detail: str = "") -> None:
        """Write one line into the trace."""
        self.trace.note(self.now_ns, who, what, detail)

    # --- events and handles, for devices ---

    def at(self, when_ns: int, call: Callable[[], None]) -> Callable[[], None]:
        """Run a device's `call` at kernel time `when_ns`; returns the function that cancels it."""
        self._event_seq += 1
        cell: _Cell = [call]
        heapq.heappush(self._events, (max(when_ns, self.now_ns), self._event_seq, cell))

        def cancel() -> None:
            cell[0] = None

        return cancel

    def push(self, when_ns: int, call: Callable[[], None]) -> None:
        """As `at`, for what is never cancelled and not before now."""
        self._event_seq += 1
        cell: _Cell = [call]
        heapq.heappush(self._events, (when_ns, self._event_seq, cell))

    def deliver(self, when_ns: int, call: Callable[[bytes], None], data: bytes) -> None:
        """As `push`, with bytes for `call`: the hot path of lines."""
        self._event_seq += 1
        heapq.heappush(self._events, (when_ns, self._event_seq, call, data))

    def after(self, delay_ns: int, call: Callable[[], None]) -> Callable[[], None]:
        """Run a device's `call` after `delay_ns` of kernel time."""
        return self.at(self.now_ns + delay_ns, call)

    def open_handle(self, owner: Node, device: object, close: Callable[[], None]) -> Handle:
        """A new handle of `owner`, not ready for anything; `close` is the device's own."""
        handle = Handle(self._next_handle, owner, device, close)
        self._next_handle += 1
        self.handles[handle.number] = handle
        owner.handles[handle.number] = handle
        return handle

    def close_handle(self, handle: Handle) -> None:
        """Forget a handle; twice is fine."""
        if self.handles.pop(handle.number, None) is None:
            return
        handle.owner.handles.pop(handle.number, None)
        if handle.watcher is not None:
            handle.watcher.unwatch(handle.number)
            handle.watcher = None

    def give_handle(self, number: int, to: Node) -> None:
        """Pass a descriptor on, as SCM_RIGHTS or an exec does; its old holder's death is then
        no matter to it. Raises Refused for a number that is not open."""
        handle = self.handle(number)
        if handle.watcher is not None:
            handle.watcher.unwatch(number)
        handle.owner.handles.pop(number, None)
        handle.owner = to
        to.handles[number] = handle

    def handle(self, number: int) -> Handle:
        """The open handle of that number. Raises Refused, as EBADF."""
        found = self.handles.get(number)
        if found is None:
            raise Refused(f"handle {number} is not open in the virtual world")
        return found

    def open_stream(self, number: int) -> MockStream:
        """The byte stream that a passed handle stands for. Raises Refused for other things."""
        device = self.handle(number).device
        if not isinstance(device, MockStream):
            raise Refused(f"handle {number} is a {type(device).__name__}, not a stream")
        return device

    def open_file(self, data: bytes, owner: Node) -> int:
        """A handle from which `read_all` gives these bytes: a file opened for reading."""
        cell: list[Handle] = []
        handle = self.open_handle(owner, data, lambda: self.close_handle(cell[0]))
        cell.append(handle)
        handle.set(READ)
        return handle.number

    def read_all(self, number: int, limit_bytes: int) -> bytes:
        """Everything that a file or stream handle holds, at most `limit_bytes`; closes it.
        Raises Unavailable for a number that is not open."""
        found = self.handles.get(number)
        if found is None:
            raise Unavailable(f"handle {number} is not open in the virtual world")
        data = bytearray()
        if isinstance(found.device, bytes):
            data += found.device
        elif isinstance(found.device, MockStream):
            with contextlib.suppress(LinkDown):  # the end of the stream
                while len(data) < limit_bytes and (piece := found.device.read()):
                    data += piece
        found.close()
        return bytes(data[:limit_bytes])

    # --- nodes ---

    def node(self, name: str) -> Node:
        """The node of that name, made at first use, alive but without a loop."""
        found = self.nodes.get(name)
        if found is None:
            found = self.nodes[name] = Node(self, name, len(self._by_index))
            self._by_index.append(found)
        return found

    def attach(self, name: str, loop: Loop) -> Node:
        """Give the node its loop: from now on it is stepped. A dead node lives again."""
        node = self.node(name)
        if node.loop is not None:
            raise RuntimeError(f"node {name!r} runs already; kill it first")
        node.loop = loop
        node.alive, node.paused = True, False
        self.note(name, "attach", str(node.incarnation))
        self.queue(node)
        return node

    def pause(self, name: str) -> None:
        """Stop stepping it while time goes on: SIGSTOP, a hung processor (faults C2, T2)."""
        self.nodes[name].paused = True
        self.note(name, "pause")

    def resume(self, name: str) -> None:
        """Go on after `pause`."""
        node = self.nodes[name]
        node.paused = False
        self.note(name, "resume")
        self.queue(node)

    def kill(self, name: str) -> None:
        """SIGKILL: no handler runs, its handles close, its loop is dropped. Twice is fine."""
        node = self.nodes[name]
        if not node.alive:
            return
        node.alive, node.paused = False, False
        node.incarnation += 1
        node.due_kernel_ns = None
        self.note(name, "kill")
        loop, node.loop = node.loop, None
        node.on_step = None
        if loop is not None:
            loop.close()
        for handle in sorted(node.handles.values(), key=lambda h: h.number):
            handle.close()
            self.close_handle(handle)
        deaths, node.on_death = node.on_death, []
        for death in deaths:
            death()

    def queue(self, node: Node) -> None:
        """Step this node before time moves."""
        if not node.queued and node.loop is not None and not node.paused:
            node.queued = True
            self._queue.append(node)

    # --- the card's furniture ---

    def register_program(self, name: str, factory: Factory) -> None:
        """What a slot boots, or what an argv that holds `name` runs (`hal.mock.program`)."""
        self.programs.register(name, factory)

    def add_slot(self, slot: Slot) -> Slot:
        """Put a slot on the card. Raises Refused for a number that is taken."""
        if slot.slot in self.slots:
            raise Refused(f"slot {slot.slot} is {self.slots[slot.slot].id!r} already")
        self.slots[slot.slot] = slot
        return slot

    def add_line(self, line: MockLine) -> MockLine:
        """Lay a cable. Raises Refused for a name that is taken."""
        if line.name in self.lines:
            raise Refused(f"line {line.name!r} is there already")
        self.lines[line.name] = line
        return line

    def add_window(self, pair: MockWindowPair) -> MockWindowPair:
        """Map a window between a card and a CNM. Raises Refused for a name that is taken."""
        if pair.name in self.windows:
            raise Refused(f"window {pair.name!r} is there already")
        self.windows[pair.name] = pair
        return pair

    def add_smbus(self, bus: MockSmbusBus) -> MockSmbusBus:
        """Lay an SMBus. Raises Refused for a name that is taken."""
        if bus.name in self.smbus:
            raise Refused(f"SMBus {bus.name!r} is there already")
        self.smbus[bus.name] = bus
        return bus

    def running(self) -> list[tuple[str, str]]:
        """(CNM id, instance key) of all that really runs anywhere: the judge of invariants."""
        return [
            (slot.id, key)
            for _, slot in sorted(self.slots.items())
            for key in sorted(slot.instances)
            if slot.instances[key].alive
        ]

    # --- running ---

    def run_for(self, duration_ns: int) -> None:
        """Run the world for so much kernel time."""
        self.run_until(lambda: False, duration_ns)

    def run_until(self, predicate: Callable[[], bool], limit_ns: int) -> bool:
        """Run until the predicate holds (asked after every round and every move of time) or
        `limit_ns` has passed; says whether it holds."""
        end_ns = self.now_ns + limit_ns
        for node in self.nodes.values():  # timers may have been set from outside a step
            self.queue(node)
        while not predicate():
            if self._queue:
                self._round()
            elif not self._advance(end_ns):
                return predicate()
        return True

    def _round(self) -> None:
        batch, self._queue = self._queue, []
        if len(batch) > 1:
            batch.sort(key=_index_of)
        for node in batch:
            node.queued = False
        for node in batch:
            self._step(node)
        self._count_idle(len(batch))

    def _count_idle(self, steps: int) -> None:
        self._idle_steps += steps
        if self._idle_steps > self._step_limit:
            busiest = sorted(self._by_index, key=lambda node: -node.steps)[:4]
            raise LivelockError(
                f"{self._idle_steps} steps at {self.now_ns} ns without time moving; most steps: "
                + ", ".join(f"{node.name} ({node.steps})" for node in busiest)
            )

    def _step(self, node: Node) -> None:
        loop = node.loop
        if loop is None or node.paused:
            return
        self.steps += 1
        node.steps += 1
        loop.step()
        if node.on_step is not None:
            node.on_step()
        if self.trace.count != self._looked_at:  # nothing was noted: nothing happened to a model
            self._looked_at = self.trace.count
            for look in self.observers:
                look(node)
        if node.loop is not loop:  # it was killed while it ran
            return
        due_ns = loop.next_due_ns()
        clock = node.clock
        if clock.has_ready:
            self.queue(node)
        if due_ns is None:
            node.due_kernel_ns = None
            return
        at_ns = clock.kernel_ns(due_ns)
        if at_ns is not None and at_ns <= self.now_ns:
            self.queue(node)
        elif at_ns != node.due_kernel_ns:
            node.due_kernel_ns = at_ns
            if at_ns is not None:
                heapq.heappush(self._dues, (at_ns, node.index))

    def _advance(self, end_ns: int) -> bool:
        """Move time to what comes next; False when that is after `end_ns`."""
        events, dues = self._events, self._dues
        while dues and self._by_index[dues[0][1]].due_kernel_ns != dues[0][0]:
            heapq.heappop(dues)  # superseded
        while events and len(events[0]) == 3 and events[0][2][0] is None:
            heapq.heappop(events)  # cancelled
        next_ns = events[0][0] if events else end_ns + 1
        if dues and dues[0][0] < next_ns:
            next_ns = dues[0][0]
        if next_ns > end_ns:
            self.now_ns = max(self.now_ns, end_ns)
            return False
        if next_ns > self.now_ns:
            self._idle_steps = 0
            self.now_ns = next_ns
        self._fire(events)
        while dues and dues[0][0] <= self.now_ns:
            at_ns, index = heapq.heappop(dues)
            node = self._by_index[index]
            if node.due_kernel_ns == at_ns:
                node.due_kernel_ns = None
                self.queue(node)
        return True

    def _fire(self, events: list[_Due]) -> None:
        newest = self._event_seq  # one scheduled now for now waits for the nodes' next round
        now_ns, fired = self.now_ns, 0
        while events and events[0][0] <= now_ns and events[0][1] <= newest:
            due = heapq.heappop(events)
            fired += 1
            if len(due) == 4:
                due[2](due[3])
                continue
            cell = due[2]
            call, cell[0] = cell[0], None
            if call is not None:
                call()
        self._count_idle(fired)

    def ready(self, number: int) -> Event:
        """What a handle is ready for, for tests and tools."""
        return EVENTS[self.handle(number).ready]


def _index_of(node: Node) -> int:
    return node.index
