"""Programs: what a node runs, how it is started, and how its end is told.

The firmware is unknown here, so whoever builds a world registers a factory for each program. It
gets a `Launch`, makes a loop on `launch.node.clock`, its ports, and attaches the loop:

    def daemon(launch: Launch) -> None:
        loop = Loop(launch.node.clock)
        launch.kernel.attach(launch.node.name, loop)
        ...
    kernel.register_program("card", daemon)
    kernel.programs.launch("card", node="daemon")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from hal.errors import Refused, Unavailable

if TYPE_CHECKING:
    from hal.mock.kernel import VirtualKernel
    from hal.mock.node import Node
    from hal.mock.slot import Slot

SIGKILL: Final = 9
SIGSTOP: Final = 19
SIGCONT: Final = 18
FIRST_PID: Final = 100


@dataclass(kw_only=True)
class Launch:
    """One start of one program on one node."""

    kernel: VirtualKernel
    node: Node
    program: str
    pid: int
    argv: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    fds: Sequence[int] = ()  # handles that were passed, owned by the node now
    slot: Slot | None = None  # the CNM it runs on; None is the card
    boot: int = 0  # how often the slot had been switched on, this time included
    exit: Callable[[int], None] = lambda status: None  # the program ends by itself
    on_signal: Callable[[int], None] | None = None  # its handler; without one a signal kills it


Factory: TypeAlias = Callable[[Launch], None]


class ProgramHandle:
    """A program that was launched: `exited` is None while it lives."""

    def __init__(self, launch: Launch, on_exit: Callable[[int], None]) -> None:
        self.launch = launch
        self.exited: int | None = None
        self.status = -SIGKILL  # what its end will give; SIGKILL unless something else comes first
        self.post = launch.node.poster()
        self._on_exit = on_exit

    def ended(self) -> None:
        """Once: the status is kept and told."""
        if self.exited is None:
            self.exited = self.status
            self._on_exit(self.status)


class Programs:
    """The table of programs, and those that run. One per kernel."""

    def __init__(self, kernel: VirtualKernel) -> None:
        self.kernel = kernel
        self.running: dict[str, ProgramHandle] = {}  # by node name
        self._history: dict[str, ProgramHandle] = {}  # the latest of each node
        self._factories: dict[str, Factory] = {}
        self._next_pid = FIRST_PID

    def register(self, name: str, factory: Factory) -> None:
        """`name` is what stands in an argv (a program or a module) or in a slot."""
        self._factories[name] = factory

    def find(self, argv: Sequence[str]) -> str:
        """The registered program that an argv runs. Raises Unavailable."""
        for word in argv:
            if word in self._factories:
                return word
        known = ", ".join(sorted(self._factories)) or "none"
        raise Unavailable(f"no program registered for argv {list(argv)!r}; known: {known}")

    def next_pid(self) -> int:
        """A pid that was never used before in this world."""
        self._next_pid += 1
        return self._next_pid

    def launch(
        self,
        program: str,
        *,
        node: str,
        argv: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        fds: Sequence[int] = (),
        slot: Slot | None = None,
        on_exit: Callable[[int], None] = lambda status: None,
    ) -> ProgramHandle:
        """Run a program on a node of its own. Raises Refused while that node runs something,
        Unavailable for an unknown program."""
        if node in self.running:
            raise Refused(f"node {node!r} runs {self.running[node].launch.program!r} already")
        if program not in self._factories:
            raise Unavailable(f"no program {program!r}; known: {sorted(self._factories)}")
        place = self.kernel.node(node)
        place.alive = True
        launch = Launch(
            kernel=self.kernel,
            node=place,
            program=program,
            pid=self.next_pid(),
            argv=tuple(argv) or (program,),
            env=dict(env or {}),
            fds=tuple(fds),
            slot=slot,
            boot=slot.boots if slot is not None else 0,
        )
        handle = ProgramHandle(launch, on_exit)
        launch.exit = lambda status: self._end(handle, status)
        place.on_death.append(lambda: self._died(handle))
        for fd in fds:
            self.kernel.give_handle(fd, place)
        self.running[node] = self._history[node] = handle
        self.kernel.note(node, "launch", f"{program} pid {launch.pid}")
        self._factories[program](launch)
        return handle

    def relaunch(self, node: str) -> ProgramHandle:
        """Kill what runs there, if anything still does, and start the same program again."""
        old = self._history[node]
        self.kernel.kill(node)
        launch = old.launch
        return self.launch(
            launch.program, node=node, argv=launch.argv, env=launch.env, slot=launch.slot
        )

    def signal(self, node: str, number: int) -> None:
        """A signal: KILL, STOP and CONT work as ever, others go to the handler or kill."""
        handle = self.running.get(node)
        if handle is None:
            return
        if number == SIGSTOP:
            self.kernel.pause(node)
        elif number == SIGCONT:
            self.kernel.resume(node)
        elif number != SIGKILL and handle.launch.on_signal is not None:
            on_signal = handle.launch.on_signal
            handle.post(lambda: on_signal(number))
        else:
            self._end(handle, -number)

    def of_slot(self, slot: Slot) -> list[ProgramHandle]:
        """What runs on a CNM, oldest first."""
        found = [h for h in self.running.values() if h.launch.slot is slot]
        return sorted(found, key=lambda h: h.launch.pid)

    def _end(self, handle: ProgramHandle, status: int) -> None:
        if self.running.get(handle.launch.node.name) is handle:
            handle.status = status
            self.kernel.kill(handle.launch.node.name)

    def _died(self, handle: ProgramHandle) -> None:
        """The node's death, whoever caused it."""
        name = handle.launch.node.name
        if self.running.get(name) is handle:
            del self.running[name]
            self.kernel.note(name, "end", str(handle.status))
            handle.ended()
