"""The `Spawner` port: a helper program becomes a node of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hal.errors import HalError, Unavailable
from hal.mock.line import stream_pair
from hal.ports import ByteStream, ProcessSpec

if TYPE_CHECKING:
    from hal.mock.node import Node
    from hal.mock.program import ProgramHandle
    from hal.mock.slot import Slot


class MockProcess:
    """A program that was spawned: the `Process` port."""

    def __init__(self, spawner: MockSpawner, handle: ProgramHandle) -> None:
        self._spawner = spawner
        self.handle = handle

    @property
    def pid(self) -> int:
        return self.handle.launch.pid

    def kill(self, signal: int) -> None:
        """Nothing happens when it is gone already."""
        if self.handle.exited is None:
            self._spawner.programs.signal(self.handle.launch.node.name, signal)


class MockSpawner:
    """Spawns for one node, on the same CNM (`slot`) or on the card. Children outlive a killed
    parent, as orphans do; the slot's power ends them."""

    def __init__(
        self, node: Node, slot: Slot | None = None, *, names: Callable[[str], str] | None = None
    ) -> None:
        """`names(program)` is the node's name; by default the CNM's id or the parent's name, "/",
        and the last dotted part of the program's."""
        self._node, self._slot = node, slot
        self.programs = node.kernel.programs
        self._names = names or self._default_name
        self._post = node.poster()
        self._pairs = 0
        self._unused: set[int] = set()  # handles of theirs that no spawn has taken yet
        self.refuse: str | None = None  # fault: no spawn works, for this reason (E5, E6)

    def spawn(self, spec: ProcessSpec, on_exit: Callable[[int], None]) -> MockProcess:
        """Raises Unavailable when no registered program stands in argv, or the fault is set;
        Refused when it runs already on its node."""
        try:
            handle = self._launch(spec, on_exit)
        except HalError:
            self._close_pairs(spec.pass_fds)
            raise
        self._unused.difference_update(spec.pass_fds)
        return MockProcess(self, handle)

    def _launch(self, spec: ProcessSpec, on_exit: Callable[[int], None]) -> ProgramHandle:
        if self.refuse is not None:
            raise Unavailable(f"spawn of {spec.argv[0]!r}: {self.refuse}")
        program = self.programs.find(spec.argv)
        post = self._post
        return self.programs.launch(
            program,
            node=self._names(program),
            argv=spec.argv,
            env=spec.env,
            fds=spec.pass_fds,
            slot=self._slot,
            on_exit=lambda status: post(lambda: on_exit(status)),
        )

    def stream_pair(self) -> tuple[ByteStream, int]:
        """Our end, and the handle to pass; the child opens it by `kernel.open_stream`. The `spawn`
        that it is passed to takes it, started or not."""
        self._pairs += 1
        name = f"{self._node.name} pair {self._node.incarnation}.{self._pairs}"
        ours, theirs = stream_pair(self._node.kernel, name, self._node, self._node)
        self._unused.add(theirs.handle)
        return ours, theirs.handle

    def _close_pairs(self, fds: Sequence[int]) -> None:
        for fd in sorted(self._unused.intersection(fds)):
            self._unused.discard(fd)
            self._node.kernel.handle(fd).close()

    def _default_name(self, program: str) -> str:
        base = self._slot.id if self._slot is not None else self._node.name
        return f"{base}/{program.rsplit('.', maxsplit=1)[-1]}"
