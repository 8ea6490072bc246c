"""What it costs to move an instance, by what is known of it and of where it is to go.

Downtime: none for its component while another replica goes on, a stop and a start else, and in
between its data where it has volumes that it may write. Bytes: of its volumes, as they last came
home (an upper bound: files that have not changed stay), and of the image layers that no instance at
the target has brought there yet; a target may have kept more than that.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from firmware.allocator.plan_types import Chain, Downtime, Weight
from firmware.assignments import Assignment
from firmware.decide import Sight
from firmware.decisions import Decisions
from firmware.images import ImageStore
from firmware.inventory import Inventory
from firmware.journal import Kind
from firmware.workload import HOST_IMAGE, Component
from protocol.apf import InstanceState

NOTHING_KNOWN: Final = Weight()


class MoveFacts:
    """Reads only. Loop thread only."""

    def __init__(self, inventory: Inventory, decisions: Decisions, images: ImageStore) -> None:
        self._inventory = inventory
        self._decisions = decisions
        self._images = images

    def runs_settled(self, instance: str) -> bool:
        """It runs where it is meant to run, and nothing is being decided about it."""
        assignment = self._decisions.assignments.get(instance)
        if assignment is None or assignment.place is None or assignment.target is not None:
            return False
        if instance in self._decisions.pending or assignment.ending is not None:
            return False
        if assignment.evicting:
            return False
        seen = self._inventory.look(assignment.place, instance)
        return (
            seen.sight is Sight.CURRENT
            and seen.status is not None
            and seen.status.state == InstanceState.RUNNING
            and seen.status.generation == assignment.place.generation
        )

    def weights(self) -> "Weights":
        """Of the instances that a plan asks for, wherever they may go."""
        return Weights(self)

    def weigh(self, chain: Chain) -> Weight:
        """A chain as it begins: the bytes of all, the downtime of the worst."""
        weights = [self.weight(move.instance) or NOTHING_KNOWN for move in chain.moves]
        layers_bytes = sum(self._layers_bytes(move.instance, move.target) for move in chain.moves)
        return Weight(
            bytes=sum(weight.bytes for weight in weights) + layers_bytes,
            downtime=max(weight.downtime for weight in weights),
        )

    def weight(self, instance: str) -> Weight | None:
        """Of one instance, wherever it may go; None for one that is not known."""
        assignment = self._decisions.assignments.get(instance)
        component = self._component(assignment)
        if assignment is None or component is None:
            return None
        downtime = Downtime.DATA if assignment.volumes else Downtime.BRIEF
        if self._others_run(assignment):
            downtime = Downtime.NONE
        names = {mount.name for mount in component.volumes}
        return Weight(bytes=sum(map(self._volume_bytes, names)), downtime=downtime)

    # --- inside ---

    def _component(self, assignment: Assignment | None) -> Component | None:
        record = self._decisions.workloads.get(assignment.workload) if assignment else None
        return record.workload.component(assignment.component) if record and assignment else None

    def _others_run(self, assignment: Assignment) -> bool:
        for name in self._decisions.of_workload(assignment.workload):
            other = self._decisions.assignments[name]
            alike = other.component == assignment.component and name != assignment.instance
            if alike and self.runs_settled(name):
                return True
        return False

    def _volume_bytes(self, name: str) -> int:
        record: Mapping[str, object] = self._decisions.journal.get(Kind.VOLUME, name) or {}
        size_bytes = record.get("bytes", 0)
        return size_bytes if isinstance(size_bytes, int) else 0

    def _layers_bytes(self, instance: str, target: str) -> int:
        """Of its image's layers, those that nobody at the target runs from."""
        layers = self._layers(self._decisions.assignments.get(instance))
        cnm = self._inventory.get(target)
        if not layers or cnm is None:
            return sum(layers.values())
        there: set[bytes] = set()
        for name in self._decisions.concerned(target):
            if name in cnm.observed:
                there.update(self._layers(self._decisions.assignments[name]))
        return sum(size_bytes for digest, size_bytes in layers.items() if digest not in there)

    def _layers(self, assignment: Assignment | None) -> dict[bytes, int]:
        """Digest and size."""
        component = self._component(assignment)
        if component is None or component.image == HOST_IMAGE:
            return {}
        image = self._images.resolve(component.image)
        return {layer.digest: layer.size_bytes for layer in image.layers} if image else {}


class Weights(Mapping[str, Weight]):
    """Found out when they are first asked for, and kept; to go through them shows only those."""

    def __init__(self, facts: MoveFacts) -> None:
        self._facts = facts
        self._known: dict[str, Weight | None] = {}

    def __getitem__(self, instance: str) -> Weight:
        if instance not in self._known:
            self._known[instance] = self._facts.weight(instance)
        found = self._known[instance]
        if found is None:
            raise KeyError(instance)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)
