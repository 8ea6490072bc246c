"""A loop whose time the test moves, and a runtime that does what the test says."""

from collections.abc import Callable, Sequence

import pytest

from firmware.loop import MS, Loop
from hal.errors import HalError
from hal.ports import (
    Done,
    Event,
    InstanceExit,
    InstanceHandle,
    InstanceSpec,
    Usage,
)


class ManualClock:
    """Stands still until a test moves it; nothing is ever ready."""

    def __init__(self) -> None:
        self.time_ns = 0

    def now_ns(self) -> int:
        return self.time_ns

    def wall_ns(self) -> int:
        return self.time_ns

    def watch(self, handle: int, events: Event) -> None: ...

    def unwatch(self, handle: int) -> None: ...

    def wait(self, until_ns: int | None) -> Sequence[tuple[int, Event]]:
        return ()

    def wake(self) -> None: ...


class ManualLoop(Loop):
    """`advance` runs every timer at its own moment."""

    def __init__(self) -> None:
        self.manual = ManualClock()
        super().__init__(self.manual)

    def advance(self, ms: float) -> None:
        end_ns = self.manual.time_ns + int(ms * MS)
        while True:
            due_ns = self.next_due_ns()
            if due_ns is None or due_ns > end_ns:
                break
            self.manual.time_ns = max(self.manual.time_ns, due_ns)
            self.step()
        self.manual.time_ns = end_ns
        self.step()


class FakeRuntime:
    """Records what it is asked; `started`, `fail` and `exit` answer."""

    name = "fake"

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.starts: dict[
            str, tuple[InstanceSpec, Done[InstanceHandle], Callable[[InstanceExit], None]]
        ] = {}
        self.removes: dict[str, Done[None]] = {}
        self.execs: list[Done[tuple[int, bytes]]] = []
        self.raises: HalError | None = None
        self.hold_removes = False

    def submit_start(
        self,
        spec: InstanceSpec,
        deadline_ns: int,
        done: Done[InstanceHandle],
        on_exit: Callable[[InstanceExit], None],
    ) -> None:
        if self.raises:
            raise self.raises
        self.calls.append(("start", spec.key))
        self.starts[spec.key] = (spec, done, on_exit)

    def started(self, key: str, pid: int = 100) -> None:
        self.starts[key][1](
            InstanceHandle(pid=pid, start_ticks=5, cgroup=f"/i-{key}", output_fd=-1)
        )

    def fail(self, key: str, error: HalError) -> None:
        self.starts[key][1](error)

    def exit(self, key: str, end: InstanceExit) -> None:
        self.starts[key][2](end)

    def signal(self, key: str, signal: int) -> None:
        if self.raises:
            raise self.raises
        self.calls.append(("signal", key, signal))

    def kill_all(self, key: str) -> None:
        if self.raises:
            raise self.raises
        self.calls.append(("kill_all", key))

    def submit_exec(
        self, key: str, argv: Sequence[str], deadline_ns: int, done: Done[tuple[int, bytes]]
    ) -> None:
        if self.raises:
            raise self.raises
        self.calls.append(("exec", key, *argv))
        self.execs.append(done)

    def usage(self, key: str) -> Usage:
        return Usage(cpu_us=1000, memory_bytes=4096)

    def submit_remove(self, key: str, deadline_ns: int, done: Done[None]) -> None:
        self.calls.append(("remove", key))
        if self.hold_removes:
            self.removes[key] = done
        else:
            done(None)

    def count(self, what: str) -> int:
        return sum(1 for call in self.calls if call[0] == what)


@pytest.fixture
def loop() -> ManualLoop:
    return ManualLoop()


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()
