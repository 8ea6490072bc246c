"""Assignments: which generation of an instance is meant to be on which CNM.

They are decisions, so they are journaled (kind "assignment", key the instance) before anything is
sent. What an instance is doing is never stored: it is derived from what its CNM reports.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self, TypeVar

UUID_BYTES: Final = 16
NUMBER_MAX: Final = (1 << 64) - 1  # as on the wire
T = TypeVar("T")


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
        """Raises KeyError, TypeError, ValueError."""
        boot_id = bytes.fromhex(typed_of(value, "boot_id", str))
        if len(boot_id) != UUID_BYTES:
            raise ValueError(f"boot_id of {len(boot_id)} bytes, wanted {UUID_BYTES}")
        return cls(
            cnm=typed_of(value, "cnm", str),
            boot_id=boot_id,
            generation=number_of(value, "generation"),
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
        """Raises KeyError, TypeError."""
        return cls(
            failed=typed_of(value, "failed", bool),
            status=typed_of(value, "status", int),
            text=typed_of(value, "text", str),
        )


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
        """Raises KeyError, TypeError, ValueError: a journal may be damaged."""
        volumes = typed_of(value, "volumes", list)
        if not all(type(name) is str for name in volumes):
            raise TypeError(f"volumes is {volumes!r:.60}, wanted names")
        return cls(
            instance=typed_of(value, "instance", str),
            workload=typed_of(value, "workload", str),
            component=typed_of(value, "component", str),
            index=number_of(value, "index"),
            place=Place.from_json(value["place"]) if value["place"] else None,
            target=Place.from_json(value["target"]) if value["target"] else None,
            why=typed_of(value, "why", str),
            restarts=number_of(value, "restarts"),
            ending=Ending.from_json(value["ending"]) if value["ending"] else None,
            volumes=tuple(volumes),
            flushed=number_of(value, "flushed"),
        )


def typed_of(record: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """Raises KeyError, TypeError."""
    value = record[name]
    if type(value) is not kind:
        raise TypeError(f"{name} is {value!r:.60}, wanted {kind.__name__}")
    return value


def number_of(record: Mapping[str, Any], name: str) -> int:
    """Raises KeyError, TypeError, ValueError."""
    value = typed_of(record, name, int)
    if not 0 <= value <= NUMBER_MAX:
        raise ValueError(f"{name} is {value!r:.60}, wanted 0..{NUMBER_MAX}")
    return value
