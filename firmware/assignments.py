"""Assignments: which generation of an instance is meant to be on which CNM.

They are decisions, so they are journaled (kind "assignment", key the instance) before anything is
sent. What an instance is doing is never stored: it is derived from what its CNM reports.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A generation on one boot of one CNM."""

    cnm: str
    boot_id: bytes
    generation: int

    def to_json(self) -> dict[str, Any]:
        return {"cnm": self.cnm, "boot_id": self.boot_id.hex(), "generation": self.generation}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(
            cnm=value["cnm"],
            boot_id=bytes.fromhex(value["boot_id"]),
            generation=value["generation"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """An instance that ended by itself and is not to be started again."""

    failed: bool
    status: int  # exit status or signal number
    text: str

    def to_json(self) -> dict[str, Any]:
        return {"failed": self.failed, "status": self.status, "text": self.text}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(failed=value["failed"], status=value["status"], text=value["text"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The card's decision about one instance; `place` None means that it waits for a CNM."""

    instance: str
    workload: str
    component: str
    index: int
    place: Place | None = None
    target: Place | None = None  # a move under way: prepared there, then flipped to `place`
    why: str = ""  # of the move
    restarts: int = 0
    ending: Ending | None = None
    volumes: tuple[str, ...] = ()  # that it may write
    flushed: int = 0  # the last generation whose volumes are safe on the card

    def to_json(self) -> dict[str, Any]:
        return {
            "v": 1,
            "instance": self.instance,
            "workload": self.workload,
            "component": self.component,
            "index": self.index,
            "place": self.place.to_json() if self.place else None,
            "target": self.target.to_json() if self.target else None,
            "why": self.why,
            "restarts": self.restarts,
            "ending": self.ending.to_json() if self.ending else None,
            "volumes": list(self.volumes),
            "flushed": self.flushed,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(
            instance=value["instance"],
            workload=value["workload"],
            component=value["component"],
            index=value["index"],
            place=Place.from_json(value["place"]) if value["place"] else None,
            target=Place.from_json(value["target"]) if value["target"] else None,
            why=value["why"],
            restarts=value["restarts"],
            ending=Ending.from_json(value["ending"]) if value["ending"] else None,
            volumes=tuple(value["volumes"]),
            flushed=value["flushed"],
        )
