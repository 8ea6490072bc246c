"""The `Runtime` port: instances as models on a CNM, and what the host can see of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from hal.errors import HalError, Refused, Unavailable
from hal.mock.instance import MockInstance
from hal.mock.later import run_later
from hal.mock.line import stream_pair
from hal.ports import Done, HostProcess, InstanceExit, InstanceHandle, InstanceSpec, Usage

if TYPE_CHECKING:
    from hal.mock.node import Node
    from hal.mock.slot import Slot

KEY_PATTERN: Final = re.compile(r"[a-z0-9.-]{1,64}")
REMOVE_NS: Final = 5_000_000  # runc delete and rmdir
EXEC_OUTPUT_BYTES: Final = 4096


class MockRuntime:
    """One node's view of the instances of its CNM. They belong to the slot: the death of the
    node that started them leaves them running, and a new view finds them."""

    def __init__(self, node: Node, slot: Slot, *, name: str = "oci") -> None:
        self._node, self._slot = node, slot
        self._kernel = node.kernel
        self._name = name
        self._starting: set[str] = set()
        self.refuse: str | None = None  # fault: nothing starts, for this reason
        self.slow_ns = 0  # fault C4: added to each start

    @property
    def name(self) -> str:
        return self._name

    def submit_start(
        self,
        spec: InstanceSpec,
        deadline_ns: int,
        done: Done[InstanceHandle],
        on_exit: Callable[[InstanceExit], None],
    ) -> None:
        """Refused: bad key, empty argv, or the key is in use. Unavailable: it can't start, in
        the runtime's words."""
        behaviour = self._kernel.behaviours.of(spec.argv)
        problem = self._problem(spec)
        if problem is None:
            self._starting.add(spec.key)

        def finish(result: InstanceHandle | HalError) -> None:
            if problem is None:
                self._starting.discard(spec.key)
            done(result)

        def work() -> InstanceHandle | HalError:
            if problem is not None:
                return problem
            why = self.refuse or behaviour.start_error
            if why is not None:
                return Unavailable(f"{self._name}: start of {spec.key!r}: {why}")
            return self._start(spec, on_exit)

        start_ns = behaviour.start_ns * self._slot.slowness + self.slow_ns
        duration_ns = 0 if problem is not None else start_ns
        run_later(self._node, duration_ns, deadline_ns, work, finish)

    def signal(self, key: str, signal: int) -> None:
        """Unknown keys are ignored."""
        found = self._slot.instances.get(key)
        if found is not None:
            found.signal(signal)

    def kill_all(self, key: str) -> None:
        """SIGKILL every process in it."""
        found = self._slot.instances.get(key)
        if found is not None:
            found.kill()

    def submit_exec(
        self, key: str, argv: Sequence[str], deadline_ns: int, done: Done[tuple[int, bytes]]
    ) -> None:
        """Status and output as the behaviour has them for argv[0]; (0, b"") for others. A
        program of unknown length ("for-ever" as argv[0]) ends at the deadline."""
        found = self._slot.instances.get(key)
        if found is None or not found.alive:
            error = Unavailable(f"{self._name}: exec in {key!r}: it does not run")
            run_later(self._node, 0, deadline_ns, lambda: error, done)
            return
        command = tuple(argv)
        results = found.behaviour.exec_results
        duration_ns = found.behaviour.exec_ns
        if command and command[0] == "for-ever":
            limit_ns = self._node.clock.kernel_ns(deadline_ns)
            duration_ns = 0 if limit_ns is None else limit_ns - self._kernel.now_ns + 1

        def work() -> tuple[int, bytes] | HalError:
            if not found.alive:
                return Unavailable(f"{self._name}: exec in {key!r}: it ended meanwhile")
            status, output = results.get(command[0] if command else "", (0, b""))
            return status, output[:EXEC_OUTPUT_BYTES]

        run_later(self._node, duration_ns, deadline_ns, work, done)

    def usage(self, key: str) -> Usage:
        """Empty for an unknown key."""
        found = self._slot.instances.get(key)
        return Usage() if found is None else found.usage()

    def submit_remove(self, key: str, deadline_ns: int, done: Done[None]) -> None:
        """Refused while it lives; absent is a success."""
        run_later(self._node, REMOVE_NS, deadline_ns, lambda: self._remove(key), done)

    def _problem(self, spec: InstanceSpec) -> HalError | None:
        if not KEY_PATTERN.fullmatch(spec.key):
            return Refused(f"instance key {spec.key!r}; want 1 to 64 of a-z, 0-9, dot, dash")
        if not spec.argv:
            return Refused(f"instance {spec.key!r}: no argv")
        if spec.key in self._slot.instances or spec.key in self._starting:
            return Refused(f"instance {spec.key!r} is there already; remove it first")
        return None

    def _start(self, spec: InstanceSpec, on_exit: Callable[[InstanceExit], None]) -> InstanceHandle:
        node, kernel = self._node, self._kernel
        behaviour = kernel.behaviours.of(spec.argv)
        post = node.poster()
        pair = f"{self._slot.id}/{spec.key} output {kernel.now_ns}"
        reader, writer = stream_pair(kernel, pair, node, kernel.node("tenants"))

        def ended(end: InstanceExit) -> None:
            writer.close()
            post(lambda: on_exit(end))

        found = MockInstance(
            kernel,
            spec,
            behaviour,
            place=self._slot.id,
            pid=kernel.programs.next_pid(),
            cgroup=f"/apf/mock/{self._slot.id}/i-{spec.key}",
            on_exit=ended,
        )
        found.output = writer
        self._slot.instances[spec.key] = found
        found.write(behaviour.output)
        return InstanceHandle(
            pid=found.pid,
            start_ticks=found.start_ticks,
            cgroup=found.cgroup,
            output_fd=reader.handle,
        )

    def _remove(self, key: str) -> HalError | None:
        found = self._slot.instances.get(key)
        if found is None:
            return None
        if found.alive:
            return Refused(f"{self._name}: {key!r} still runs as pid {found.pid}")
        del self._slot.instances[key]
        return None


class MockHostView:
    """The `HostView` port: what the host of a mock board sees of a CNM's pids. The same pids;
    there is one namespace here."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def submit_lookup(
        self,
        slot: int,
        cnm_pids: Sequence[int],
        deadline_ns: int,
        done: Done[Mapping[int, HostProcess]],
    ) -> None:
        """Pids that are gone are left out; an unknown slot is Refused."""
        wanted = frozenset(cnm_pids)
        run_later(self._node, 0, deadline_ns, lambda: self._lookup(slot, wanted), done)

    def _lookup(self, slot: int, wanted: frozenset[int]) -> Mapping[int, HostProcess]:
        place = self._node.kernel.slots.get(slot)
        if place is None:
            raise Refused(f"slot {slot}: not on this card")
        return {
            found.pid: HostProcess(
                pid=found.pid, start_ticks=found.start_ticks, cgroup=found.cgroup
            )
            for _, found in sorted(place.instances.items())
            if found.alive and found.pid in wanted
        }
