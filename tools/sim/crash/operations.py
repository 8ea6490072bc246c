"""What a card writes into its journal in a busy life: the real decisions, drawn from a seed.

`firmware.decisions` and `firmware.journal` make the records; a store that only collects them is
below. Workloads come and go, their instances are placed, moved, restarted, forgotten; modules are
granted, fenced, drained; images and volumes change.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, cast

from firmware.assignments import Assignment, Ending, Place
from firmware.board import load_board
from firmware.decisions import Decisions, WorkloadDecision
from firmware.events import EventLog
from firmware.inventory import Cnm
from firmware.journal import Change, Journal, JournalError, Kind
from firmware.loop import Loop
from firmware.workload import Workload, instance_name
from hal.mock.kernel import VirtualKernel
from hal.ports import Done, JournalRecord
from tools.sim import documents

WORKLOADS: Final = 12  # at a time
MODULES: Final = 4

Batch = tuple[JournalRecord, ...]


class _Collector:
    """`hal.ports.JournalStore` that takes everything at once."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def load(self) -> Sequence[JournalRecord]:
        return []

    def submit(self, batch: Sequence[JournalRecord], done: Done[None]) -> None:
        self.batches.append(tuple(batch))
        done(None)

    def close(self) -> None: ...


@dataclass(slots=True)
class _Module:
    """What `Decisions` reads and writes of a `firmware.inventory.Cnm`."""

    id: str
    uuid: bytes
    boot_id: bytes
    granted_durable: bytes = b""
    draining: bool = False
    power_wanted: bool = True


class _Life:
    """A card's decisions, one after the other. Each method makes one batch, or none."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(f"operations {seed}")  # noqa: S311 - a seed's own life
        kernel = VirtualKernel(seed)
        self._loop = Loop(kernel.node("card").clock)
        self._events = EventLog(self._loop, lambda: 0)
        self.store = _Collector()
        self._journal = Journal(self.store)
        self.card = Decisions(self._journal, self._loop, self._events)
        self._modules = [
            _Module(id=slot.id, uuid=self._rng.randbytes(16), boot_id=self._rng.randbytes(16))
            for slot in load_board("mock_4", run_dir="/run/apf").slots[:MODULES]
        ]
        self._named = 0
        self._steps: Sequence[tuple[int, Callable[[], None]]] = (
            (6, self.submit),
            (20, self.place),
            (12, self.move),
            (12, self.flip),
            (8, self.restart),
            (4, self.end),
            (8, self.forget),
            (4, self.delete),
            (6, self.erase),
            (10, self.reboot),
            (4, self.fence),
            (3, self.drain),
            (8, self.flush),
            (2, self.image),
        )

    def begin(self) -> None:
        self.card.begin_epoch(self._rng.randbytes(16), _good)

    def step(self) -> None:
        weights = [weight for weight, _ in self._steps]
        self._rng.choices([step for _, step in self._steps], weights)[0]()

    # --- workloads ---

    def submit(self) -> None:
        if len(self.card.workloads) >= WORKLOADS:
            return
        self._named += 1
        name = f"shop{self._named}"
        parts = [
            documents.component(f"part{number}", replicas=self._rng.randint(1, 4))
            for number in range(self._rng.randint(1, 4))
        ]
        parts.append(documents.component("db", volumes=[documents.volume(f"{name}-data")]))
        decision = WorkloadDecision(workload=Workload.from_json(documents.workload(name, *parts)))
        self.card.accept(decision, [self._volume(f"{name}-data", 0)], _good)

    def delete(self) -> None:
        live = [found for found in self.card.workloads.values() if not found.deleted]
        if live:
            self.card.accept(replace(self._rng.choice(live), deleted=True), [], _good)

    def erase(self) -> None:
        users = {assignment.workload for assignment in self.card.assignments.values()}
        for name, found in self.card.workloads.items():
            if found.deleted and name not in users:
                self.card.erase_workload(name, _well)
                return

    # --- instances ---

    def place(self) -> None:
        """All that a workload lacks: one batch, as the placer's."""
        fresh = []
        for found in self.card.workloads.values():
            for part in found.workload.components if not found.deleted else ():
                for index in range(part.replicas):
                    instance = instance_name(found.workload.name, part.name, index)
                    if instance not in self.card.assignments:
                        fresh.append(
                            Assignment(
                                instance=instance,
                                workload=found.workload.name,
                                component=part.name,
                                index=index,
                                place=self._place(),
                                volumes=tuple(volume.name for volume in part.volumes),
                            )
                        )
        if fresh:
            self.card.assign(fresh[: self._rng.randint(1, 16)], _well)

    def move(self) -> None:
        for found in self._instances(lambda a: a.place is not None and a.target is None):
            self.card.assign([replace(found, target=self._place(), why="rebalance")], _well)

    def flip(self) -> None:
        for found in self._instances(lambda a: a.target is not None):
            self.card.assign([replace(found, place=found.target, target=None, why="")], _well)

    def restart(self) -> None:
        for found in self._instances(lambda a: a.place is not None):
            again = replace(found, place=self._place(), restarts=found.restarts + 1)
            self.card.assign([again], _well)

    def end(self) -> None:
        for found in self._instances(lambda a: a.ending is None):
            ending = Ending(failed=True, status=1, text="exited with 1")
            self.card.assign([replace(found, ending=ending)], _well)

    def forget(self) -> None:
        deleted = {name for name, found in self.card.workloads.items() if found.deleted}
        for found in self._instances(lambda a: a.workload in deleted):
            self.card.forget(found.instance, _well)

    # --- modules, volumes, images ---

    def reboot(self) -> None:
        """A new boot is granted."""
        module = self._rng.choice(self._modules)
        module.boot_id = self._rng.randbytes(16)
        self.card.grant(_cnm(module), lambda: None)

    def fence(self) -> None:
        """And what was there goes elsewhere, all in one batch."""
        module = _cnm(self._rng.choice(self._modules))
        self.card.begin_fence(module, _well, end_epoch=True)
        self.card.fenced(module, _well)
        homeless = [self.card.assignments[name] for name in self.card.concerned(module.id)]
        if homeless:
            self.card.assign(
                [replace(found, place=self._place(), target=None) for found in homeless], _well
            )

    def drain(self) -> None:
        module = self._rng.choice(self._modules)
        self.card.keep(_cnm(module), _well, draining=not module.draining)

    def flush(self) -> None:
        for found in self._instances(lambda a: bool(a.volumes)):
            self._commit(self._volume(found.volumes[0], found.flushed + 1))

    def image(self) -> None:
        ref = f"registry/app{self._rng.randrange(4)}:1"
        known = self._journal.get(Kind.IMAGE, ref) is not None
        layers = [self._rng.randbytes(64) for _ in range(self._rng.randint(1, 20))]
        value = None if known else {"manifest": documents.image(ref, *layers)}
        self._commit(Change(kind=Kind.IMAGE, key=ref, value=value))

    # --- inside ---

    def _instances(self, wanted: Callable[[Assignment], bool]) -> list[Assignment]:
        """One of those, or none."""
        found = [item for item in self.card.assignments.values() if wanted(item)]
        return [self._rng.choice(found)] if found else []

    def _place(self) -> Place:
        module = self._rng.choice(self._modules)
        generation = self.card.next_generation()
        return Place(cnm=module.id, boot_id=module.boot_id, generation=generation)

    def _volume(self, name: str, generation: int) -> Change:
        value = {
            "manifest": self._rng.randbytes(32).hex(),
            "generation": generation,
            "flushed_wall_ms": None,
            "bytes": self._rng.randrange(1 << 30),
            "files": self._rng.randrange(1000),
        }
        return Change(kind=Kind.VOLUME, key=name, value=value)

    def _commit(self, change: Change) -> None:
        self._journal.commit([change], _good)


def _cnm(module: _Module) -> Cnm:
    return cast(Cnm, module)


def _good(error: JournalError | None) -> None:
    if error is not None:
        raise error


def _well(good: bool) -> None:
    assert good, "the collector refuses nothing"


def card_operations(count: int, seed: int) -> list[Batch]:
    """The first `count` batches of a card's life; the same for the same seed."""
    life = _Life(seed)
    life.begin()
    while len(life.store.batches) < count:
        life.step()
    return life.store.batches[:count]


def state_after(before: dict[tuple[str, str], bytes], batch: Batch) -> None:
    """Apply a batch, in place."""
    for record in batch:
        if record.value is None:
            before.pop((record.kind, record.key), None)
        else:
            before[record.kind, record.key] = record.value
