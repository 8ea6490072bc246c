"""A node of the virtual world: its clock, its handles, and whether it lives.

A node's clock runs at its own rate and from its own start, as the oscillators of a card and of
its modules do (DESIGN section 4 grants 1e-3; `set_rate` takes any). The wall clock may be
stepped at will (fault T1); CLOCK_BOOTTIME never goes back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from hal.ports import Event

if TYPE_CHECKING:
    from hal.mock.kernel import VirtualKernel

WALL_START_NS: Final = 1_767_225_600_000_000_000  # 2026-01-01T00:00:00Z
MILLION: Final = 1_000_000
EVENTS: Final = tuple(Event(bits) for bits in range(8))  # by their bits: making one costs 1 us
READ: Final = int(Event.READ)
WRITE: Final = int(Event.WRITE)
HANGUP: Final = int(Event.HANGUP)


class Loop(Protocol):
    """What the kernel needs of a loop; `firmware.loop.Loop` has more."""

    def step(self) -> bool: ...

    def next_due_ns(self) -> int | None: ...

    def post(self, call: Callable[[], None]) -> None: ...

    def close(self) -> None: ...


class Handle:
    """Something a loop can wait on. `number` plays the file descriptor."""

    __slots__ = ("close", "device", "number", "owner", "ready", "wanted", "watcher")

    def __init__(self, number: int, owner: Node, device: object, close: Callable[[], None]) -> None:
        self.number = number
        self.owner = owner  # its death closes the handle, as a process's death does
        self.device = device  # what the number stands for: `kernel.open_stream` asks
        self.close = close  # the device's own close; closes this handle too
        self.ready = 0  # bits of Event, as plain integers: this is the hottest path of the world
        self.wanted = 0
        self.watcher: NodeClock | None = None

    def set(self, events: int) -> None:
        """Say what it is ready for now (bits of Event); wakes the node that watches it."""
        self.ready = events
        if self.watcher is not None:
            self.watcher.look_at(self)


class NodeClock:
    """The `Clock` port of one node. `wait` never waits: the kernel moves time between steps."""

    def __init__(self, kernel: VirtualKernel, node: Node) -> None:
        self._kernel = kernel
        self.node = node
        self._base_kernel_ns = kernel.now_ns
        self._base_node_ns = kernel.now_ns
        self._rate = MILLION  # node ns in a million kernel ns
        self._wall_offset_ns = WALL_START_NS
        self._ready: dict[int, Handle] = {}

    # --- the port ---

    def now_ns(self) -> int:
        """CLOCK_BOOTTIME of this node."""
        elapsed = self._kernel.now_ns - self._base_kernel_ns
        if self._rate != MILLION:
            elapsed = elapsed * self._rate // MILLION
        return self._base_node_ns + elapsed

    def wall_ns(self) -> int:
        """Wall clock of this node."""
        return self.now_ns() + self._wall_offset_ns

    def watch(self, handle: int, events: Event) -> None:
        """Start or change a watch. Raises Refused for a number that is not open."""
        found = self._kernel.handle(handle)
        if found.watcher is not None and found.watcher is not self:
            found.watcher.unwatch(handle)
        found.watcher = self
        found.wanted = int(events) | HANGUP
        self.look_at(found)

    def unwatch(self, handle: int) -> None:
        """Stop watching; unknown handles are ignored."""
        self._ready.pop(handle, None)
        found = self._kernel.handles.get(handle)
        if found is not None and found.watcher is self:
            found.watcher = None

    def wait(self, until_ns: int | None) -> Sequence[tuple[int, Event]]:
        """What is ready now, in the order of the handles' numbers. Never waits."""
        ready = self._ready
        if not ready:
            return ()
        if len(ready) == 1:
            [(number, handle)] = ready.items()
            return ((number, EVENTS[handle.ready & handle.wanted]),)
        return [
            (number, EVENTS[handle.ready & handle.wanted])
            for number, handle in sorted(ready.items())
        ]

    def wake(self) -> None:
        """Have the kernel step this node once more at the present time."""
        self._kernel.queue(self.node)

    # --- for the kernel and the devices ---

    def look_at(self, handle: Handle) -> None:
        """Level-triggered: a handle is ready for as long as what it waits for holds."""
        if handle.ready & handle.wanted:
            self._ready[handle.number] = handle
            if not self.node.queued:
                self._kernel.queue(self.node)
        else:
            self._ready.pop(handle.number, None)

    @property
    def has_ready(self) -> bool:
        return bool(self._ready)

    def kernel_ns(self, node_ns: int) -> int | None:
        """The first kernel time at which this clock shows `node_ns`; None if it stands still."""
        if self._rate == MILLION:
            return node_ns - self._base_node_ns + self._base_kernel_ns
        if node_ns <= self.now_ns():
            return self._kernel.now_ns
        if self._rate == 0:
            return None
        return self._base_kernel_ns - (self._base_node_ns - node_ns) * MILLION // self._rate

    @property
    def rate_ppm(self) -> int:
        """How much faster than the kernel's this clock runs."""
        return self._rate - MILLION

    def set_rate(self, ppm: int) -> None:
        """Drift from now on, in parts per million; -1,000,000 stops the clock (fault T2)."""
        if ppm < -MILLION:
            raise ValueError(f"{self.node.name}: a rate of {ppm} ppm would run backwards")
        self._base_node_ns = self.now_ns()
        self._base_kernel_ns = self._kernel.now_ns
        self._rate = MILLION + ppm
        self._kernel.note(self.node.name, "clock_rate", str(ppm))
        self._kernel.queue(self.node)

    def skip(self, forward_ns: int) -> None:
        """Jump ahead: the machine was suspended for so long (fault T2), or booted earlier."""
        if forward_ns < 0:
            raise ValueError(f"{self.node.name}: CLOCK_BOOTTIME can't go back {-forward_ns} ns")
        self._base_node_ns += forward_ns
        self._kernel.note(self.node.name, "clock_skip", str(forward_ns))
        self._kernel.queue(self.node)

    def step_wall(self, by_ns: int) -> None:
        """Set the wall clock forward or back (fault T1)."""
        self._wall_offset_ns += by_ns
        self._kernel.note(self.node.name, "clock_wall", str(by_ns))


class Node:
    """One process: a loop, a clock and the handles that die with it."""

    def __init__(self, kernel: VirtualKernel, name: str, index: int) -> None:
        self.kernel = kernel
        self.name = name
        self.index = index  # order of stepping
        self.incarnation = 0  # grows with every death
        self.alive = True
        self.paused = False
        self.queued = False
        self.due_kernel_ns: int | None = None
        self.loop: Loop | None = None
        self.clock = NodeClock(kernel, self)
        self.handles: dict[int, Handle] = {}
        self.on_death: list[Callable[[], None]] = []  # devices with state that a death changes
        self.steps = 0
        self.on_step: Callable[[], None] | None = None  # after each step of this life's loop

    def poster(self) -> Callable[[Callable[[], None]], None]:
        """How a device completes requests of this incarnation: posts to its loop, and does
        nothing once the node has died, even if it lives again."""
        incarnation = self.incarnation

        def post(call: Callable[[], None]) -> None:
            if self.incarnation == incarnation and self.loop is not None:
                self.loop.post(call)

        return post

    def __repr__(self) -> str:
        state = "paused" if self.paused else "alive" if self.alive else "dead"
        return f"<node {self.name} {state}>"
