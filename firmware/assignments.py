"""Assignments: which generation of an instance is meant to be on which CNM.

They are decisions, so they are journaled (kind "assignment", key the instance) before anything is
sent. What an instance is doing is never stored: it is derived from what its CNM reports.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self, TypeVar

from protocol.apf import ExitReason

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
    status: int  # of `reason` EXITED the exit status, of SIGNALED the signal's number
    text: str
    reason: int = ExitReason.EXITED  # records before there was one have only those of EXITED

    @property
    def exit_status(self) -> int | None:
        """None where nothing exited: it never started, or was killed."""
        return self.status if self.reason == ExitReason.EXITED else None

    @property
    def signal(self) -> int | None:
        """The signal that killed it, if one did."""
        return self.status if self.reason == ExitReason.SIGNALED else None

    def to_json(self) -> dict[str, Any]:
        return {
            "failed": self.failed,
            "status": self.status,
            "text": self.text,
            "reason": int(self.reason),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Raises KeyError, TypeError."""
        return cls(
            failed=typed_of(value, "failed", bool),
            status=typed_of(value, "status", int),
            text=typed_of(value, "text", str),
            reason=number_of(value, "reason") if "reason" in value else ExitReason.EXITED,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Eviction:
    """Stopped so that another instance gets its room. It is in force while the generation that it
    names is the one in place; afterwards it says since when the instance rests."""

    by: str  # the instance that the room is for
    cnm: str
    generation: int
    at_ms: int  # CLOCK_BOOTTIME of the decision

    def to_json(self) -> dict[str, Any]:
        return {
            "by": self.by,
            "cnm": self.cnm,
            "generation": self.generation,
            "at_ms": self.at_ms,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Raises KeyError, TypeError, ValueError."""
        return cls(
            by=typed_of(value, "by", str),
            cnm=typed_of(value, "cnm", str),
            generation=number_of(value, "generation"),
            at_ms=number_of(value, "at_ms"),
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
    restarts: int = 0  # how often it was started again, whoever had ended it
    attempts: int = 0  # of those, what its restart policy allows so many of
    ending: Ending | None = None
    volumes: tuple[str, ...] = ()  # that it may write
    flushed: int = 0  # the last generation whose volumes are safe on the card
    evict: Eviction | None = None  # the last one

    @property
    def evicting(self) -> bool:
        """It is to leave its place, for another instance."""
        evict, place = self.evict, self.place
        return evict is not None and place is not None and evict.generation == place.generation

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
            "attempts": self.attempts,
            "ending": self.ending.to_json() if self.ending else None,
            "volumes": list(self.volumes),
            "flushed": self.flushed,
            **({"evict": self.evict.to_json()} if self.evict is not None else {}),
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
            # records before there was one counted all restarts as attempts
            attempts=number_of(value, "attempts" if "attempts" in value else "restarts"),
            ending=Ending.from_json(value["ending"]) if value["ending"] else None,
            volumes=tuple(volumes),
            flushed=number_of(value, "flushed"),
            evict=Eviction.from_json(value["evict"]) if value.get("evict") else None,
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
