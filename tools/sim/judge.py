"""The judge: what must hold at every moment of a simulated card, whatever breaks.

It believes nobody. What runs is what the kernel's slots hold alive; what was decided is what the
card's disk holds; the board says how large a module is. It looks after each step of the kernel in
which something happened, and raises `Violation` with the seed.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from firmware.link import QUEUE_PACKETS
from firmware.workload import Component
from hal.mock.disk import Disk
from hal.mock.instance import MockInstance
from hal.mock.kernel import VirtualKernel
from hal.mock.node import Node

MAILBOX_MOST: Final = 4096  # far below the loop's own limit: a pile-up shows early
TIMERS_MOST: Final = 20_000


class Violation(AssertionError):
    """An invariant was broken. `invariant` is its stable name, `text` what was found, `at_ns` the
    kernel's time."""

    def __init__(self, invariant: str, at_ns: int, text: str, context: str = "") -> None:
        """`context`: what helps to see it again, for the message only."""
        super().__init__(f"{invariant}: {text}" + (f"\n{context}" if context else ""))
        self.invariant = invariant
        self.at_ns = at_ns
        self.text = text


class Injected(Protocol):
    """What the judge reads of a fault that was injected (`tools.sim.faults.Injection`)."""

    id: str
    cnm: str | None
    at_ns: int
    text: str
    lasts_ns: int
    seen: Callable[[], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """One start of one generation that really happened."""

    at_ns: int
    instance: str
    generation: int
    cnm: str
    pid: int


def instance_of(found: MockInstance) -> tuple[str, int]:
    """(instance, generation) of what runs, by its own environment and key."""
    return found.spec.env["APF_INSTANCE"], int(found.spec.key.rsplit(".", 1)[1])


class Judge:
    """Install once, before anything runs."""

    def __init__(
        self,
        kernel: VirtualKernel,
        disk: Disk,
        components: Mapping[str, Component],
    ) -> None:
        """`components` by instance: what the test has submitted, removed ones included."""
        self.kernel = kernel
        self.starts: list[Started] = []
        self.looks = 0
        self.on_start: list[Callable[[Started], None]] = []  # more to check at each start
        self._disk = disk
        self._components = components
        self._trace_count = -1
        self._batches = -1
        self._pids: set[int] = set()
        self._started: set[tuple[str, int]] = set()
        self._decided: dict[str, set[int]] = defaultdict(set)  # instance -> generations on disk
        self._newest: dict[str, int] = {}  # instance -> highest generation that ran
        self._epoch = self._generation = 0
        self.links: list[Any] = []  # firmware.link.Link of the daemon that runs
        self.injections: list[Injected] = []
        self.over_ns: int | None = None  # when the faults were over
        kernel.observers.append(self._after_step)

    # --- looking ---

    def running(self) -> dict[str, tuple[str, int, int]]:
        """instance -> (CNM, generation, pid) of what is alive. Raises Violation for two copies."""
        found: dict[str, tuple[str, int, int]] = {}
        for _, slot in sorted(self.kernel.slots.items()):
            for one in slot.instances.values():
                if not one.alive:
                    continue
                name, generation = instance_of(one)
                if name in found:
                    self.fail(
                        "two copies run",
                        f"{name}: generation {found[name][1]} on {found[name][0]} and generation "
                        f"{generation} on {slot.id}",
                    )
                found[name] = (slot.id, generation, one.pid)
        return found

    def starts_of(self, instance: str) -> list[Started]:
        return [start for start in self.starts if start.instance == instance]

    def fail(self, invariant: str, text: str) -> None:
        """Raises Violation, with what is needed to see it again."""
        last = "\n".join(
            f"  {entry.at_ns / 1e9:.6f} {entry.who} {entry.what} {entry.detail}"
            for entry in self.kernel.trace.entries()[-40:]
        )
        raise Violation(
            invariant,
            self.kernel.now_ns,
            text,
            f"seed {self.kernel.seed}, {self.kernel.now_ns / 1e9:.6f} s; "
            f"last of the trace:\n{last}",
        )

    # --- what the run tells it ---

    def injected(self, injection: Injected) -> None:
        """A fault acts from now on: for the blast radius and for truthful reporting."""
        self.injections.append(injection)

    def faults_over(self, at_ns: int) -> None:
        """Everything is healed: from `at_ns` on the bounds of recovery count."""
        self.over_ns = at_ns

    def finish(self) -> None:
        """The checks at the end of a run. Raises Violation."""

    # --- after each step ---

    def _after_step(self, node: Node) -> None:
        count = self.kernel.trace.count
        if count == self._trace_count:
            return
        self._trace_count = count
        self.looks += 1
        if self._disk.journal.batches != self._batches:
            self._batches = self._disk.journal.batches
            self._look_at_disk()
        running = self.running()
        for name, (cnm, generation, pid) in running.items():
            if pid not in self._pids:
                self._look_at_start(name, cnm, generation, pid)
        self._look_at_room(running)
        if node.name == "daemon":
            self._look_at_queues(node)

    def _look_at_start(self, name: str, cnm: str, generation: int, pid: int) -> None:
        self._pids.add(pid)
        start = Started(
            at_ns=self.kernel.now_ns, instance=name, generation=generation, cnm=cnm, pid=pid
        )
        self.starts.append(start)
        for check in self.on_start:
            check(start)
        if (name, generation) in self._started:
            self.fail("a generation started twice", f"{name} generation {generation} on {cnm}")
        self._started.add((name, generation))
        if generation < self._newest.get(name, 0):
            self.fail(
                "a lower generation started",
                f"{name} generation {generation} on {cnm} after {self._newest[name]}",
            )
        self._newest[name] = generation
        if generation not in self._decided[name]:
            self.fail(
                "it runs and was never decided",
                f"{name} generation {generation} on {cnm}; on disk: {sorted(self._decided[name])}",
            )

    def _look_at_disk(self) -> None:
        for (kind, key), raw in self._disk.journal.durable.items():
            if kind == "meta":
                value = json.loads(raw)["value"]
                if key == "epoch":
                    if value < self._epoch:
                        self.fail("the epoch fell", f"from {self._epoch} to {value}")
                    self._epoch = value
                elif key == "generation":
                    if value < self._generation:
                        self.fail("the generation fell", f"from {self._generation} to {value}")
                    self._generation = value
            elif kind == "assignment":
                record = json.loads(raw)
                for place in (record["place"], record["target"]):
                    if place is not None:
                        self._decided[key].add(place["generation"])

    def _look_at_room(self, running: Mapping[str, tuple[str, int, int]]) -> None:
        used: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for name, (cnm, _, _) in running.items():
            need = self._components[name].resources
            used[cnm][0] += need.cpu_milli
            used[cnm][1] += need.memory_bytes
        for cnm, (cpu_milli, memory_bytes) in used.items():
            most_milli, most_bytes = self.capacity[cnm]
            if cpu_milli > most_milli or memory_bytes > most_bytes:
                self.fail(
                    "overcommit",
                    f"{cnm}: {cpu_milli} of {most_milli} milli, "
                    f"{memory_bytes} of {most_bytes} bytes",
                )

    capacity: Mapping[str, tuple[int, int]] = {}  # CNM -> cpu_milli, memory_bytes

    def _look_at_queues(self, node: Node) -> None:
        loop: Any = node.loop
        if loop is None:
            return
        if len(loop._mailbox) > MAILBOX_MOST:
            self.fail("mailbox", f"{len(loop._mailbox)} calls wait")
        if len(loop._timers) > TIMERS_MOST:
            self.fail("timers", f"{len(loop._timers)} are set")
        for link in self.links:
            if len(link._queue) > QUEUE_PACKETS:
                self.fail("link queue", f"{link.name}: {len(link._queue)} packets")
