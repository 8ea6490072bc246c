"""The judge's own sums: what an instance declares, what a module has, and whether it fits."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Self

from firmware.board_types import Module
from firmware.profile import OOM_LEAST_BYTES, OOM_PERCENT
from firmware.profile_needs import DEFAULT_MEMORY_BYTES
from firmware.workload import Component

OOMS_MOST: Final = 40  # by then it is more than any module has
WHOLE_MILLI: Final = 1000  # of one device


@dataclass(slots=True)
class Room:
    """Amounts of everything that can be reserved. Devices count in thousandths, by (kind, model);
    a demand that names no model counts under (kind, "")."""

    cpu_milli: int = 0
    memory_bytes: int = 0
    nvme_bytes: int = 0
    link_mbit: int = 0
    devices: dict[tuple[str, str], int] = field(default_factory=dict)

    @classmethod
    def of(cls, component: Component) -> Self:
        """What an instance reserves by its own words: reservation, else limit."""
        wants = component.resources
        found = cls(
            wants.cpu_milli or wants.cpu_limit_milli,
            wants.memory_bytes or wants.memory_limit_bytes,
            wants.nvme_bytes,
            wants.link_mbit,
        )
        for item in wants.accelerators:
            key = (item.kind, item.model or "")
            found.devices[key] = found.devices.get(key, 0) + item.count * item.milli
        return found

    @classmethod
    def most(cls, component: Component, ooms: int = 0) -> Self:
        """The most that it may have to wait for: what it was measured to use of its memory raises
        what it reserves, and so does each kill for want of it, up to its limit
        (`firmware.profile`, `firmware.profile_needs`)."""
        found = cls.of(component)
        limit = component.resources.memory_limit_bytes
        found.memory_bytes = max(found.memory_bytes, limit)
        for _ in range(0 if limit else min(ooms, OOMS_MOST)):
            used = found.memory_bytes or DEFAULT_MEMORY_BYTES
            found.memory_bytes = max(used + OOM_LEAST_BYTES, used * (100 + OOM_PERCENT) // 100)
        return found

    @classmethod
    def in_module(cls, module: Module) -> Self:
        """What a module is made of."""
        found = cls(module.cores_milli, module.memory_bytes, module.nvme_bytes, module.link_mbit)
        for pool in module.accelerators:
            for key in ((pool.kind, pool.model), (pool.kind, "")):
                found.devices[key] = found.devices.get(key, 0) + pool.count * WHOLE_MILLI
        return found

    def add(self, other: "Room", sign: int = 1) -> None:
        """Take it up; -1 lets it go."""
        self.cpu_milli += sign * other.cpu_milli
        self.memory_bytes += sign * other.memory_bytes
        self.nvme_bytes += sign * other.nvme_bytes
        self.link_mbit += sign * other.link_mbit
        for (kind, model), milli in other.devices.items():
            for key in {(kind, model), (kind, "")}:  # one that names a model takes of its kind too
                self.devices[key] = self.devices.get(key, 0) + sign * milli

    def over(self, most: "Room") -> str:
        """What of it is more than `most`, in words; "" if it fits."""
        if (
            self.cpu_milli <= most.cpu_milli
            and self.memory_bytes <= most.memory_bytes
            and self.nvme_bytes <= most.nvme_bytes
            and self.link_mbit <= most.link_mbit
            and not self.devices
        ):
            return ""
        amounts = [
            ("cpu_milli", self.cpu_milli, most.cpu_milli),
            ("memory_bytes", self.memory_bytes, most.memory_bytes),
            ("nvme_bytes", self.nvme_bytes, most.nvme_bytes),
            ("link_mbit", self.link_mbit, most.link_mbit),
        ]
        amounts += [
            (" ".join(key).strip(), milli, most.devices.get(key, 0))
            for key, milli in sorted(self.devices.items())
        ]
        return ", ".join(
            f"{used} of {limit} {name}" for name, used, limit in amounts if used > limit
        )


def total(parts: Iterable[Room]) -> Room:
    """Their sum."""
    found = Room()
    for part in parts:
        found.add(part)
    return found
