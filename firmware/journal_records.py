"""The journal's records as typed values, or the reason why they can't be believed.

`firmware.journal` sees to it that a record is a JSON object of a version that can be read. Here
each record is read to the last of its fields before the daemon acts on any of them: a decision
that turns out to be half readable in the middle of a failover is worse than a start that fails
and names the record. Keys that nobody knows are left alone (DESIGN D14).
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from firmware.assignments import Assignment, number_of, typed_of
from firmware.fields import FieldError
from firmware.image_manifest import Image
from firmware.journal import Journal, JournalError, Kind, Record
from firmware.workload import Workload

DIGEST_BYTES: Final = 32
UUID_BYTES: Final = 16
GENERATION_KEY: Final = "generation"
PREEMPTED_KEY: Final = "preempted"  # when, in ms of CLOCK_BOOTTIME, within an hour of the last one
T = TypeVar("T")


def read_workloads(journal: Journal) -> dict[str, tuple[Workload, bool]]:
    """Workloads by name, and whether they are deleted. Raises JournalError."""

    def read(name: str, record: Record) -> tuple[Workload, bool]:
        workload = Workload.from_json(record["workload"])
        _same("name", workload.name, name)
        return workload, bool(record.get("deleted"))

    return _all(journal, Kind.WORKLOAD, read)


def read_assignments(journal: Journal) -> dict[str, Assignment]:
    """Assignments by instance. Raises JournalError."""

    def read(instance: str, record: Record) -> Assignment:
        found = Assignment.from_json(record)
        _same("instance", found.instance, instance)
        return found

    return _all(journal, Kind.ASSIGNMENT, read)


def read_generation(journal: Journal) -> int:
    """The highest generation ever given; 0 before the first. Raises JournalError."""
    return _all(journal, Kind.META, _meta).get(GENERATION_KEY, 0)


def read_preempted(journal: Journal) -> list[int] | None:
    """The times at which instances were stopped for others, in ms; None where nobody wrote them
    down. Raises JournalError."""
    found = _all(journal, Kind.META, lambda key, r: _times(r) if key == PREEMPTED_KEY else None)
    return found.get(PREEMPTED_KEY)


def check_the_rest(journal: Journal) -> None:
    """What others read record by record while the card runs. Raises JournalError."""
    _all(journal, Kind.CNM, _module)
    _all(journal, Kind.VOLUME, _volume)
    _all(journal, Kind.IMAGE, lambda _ref, record: Image.from_json(record["manifest"]))


def _all(journal: Journal, kind: Kind, read: Callable[[str, Any], T]) -> dict[str, T]:
    found: dict[str, T] = {}
    for key, record in journal.items(kind).items():
        try:
            found[key] = read(key, record)
        except (KeyError, TypeError, ValueError, FieldError) as exc:
            text = f"missing {exc}" if isinstance(exc, KeyError) else str(exc)
            raise JournalError(
                f"corrupt record: {text[:200]}; restore the journal from a backup, or remove this "
                "record with the daemon stopped",
                code="corrupt",
                kind=kind,
                key=key,
            ) from exc
    return found


def _same(name: str, found: str, key: str) -> None:
    if found != key:
        raise ValueError(f"{name} is {found!r:.80}, its key another")


def _meta(key: str, record: Mapping[str, Any]) -> int:
    value = record["value"]
    if key == "card_uuid":
        _hex(record, "value", UUID_BYTES)
        return 0
    if key in ("epoch", GENERATION_KEY):
        return number_of(record, "value")
    return value if type(value) is int else 0


def _times(record: Mapping[str, Any]) -> list[int]:
    times = typed_of(record, "value", list)
    return [number_of({"value": at_ms}, "value") for at_ms in times]


def _module(_cnm: str, record: Mapping[str, Any]) -> None:
    for name in ("uuid", "boot_id"):  # absent, or empty, until it was met
        if record.get(name, "") != "":
            _hex(record, name, UUID_BYTES)
    for name, kind in (("state", str), ("draining", bool), ("power_wanted", bool)):
        if name in record:
            typed_of(record, name, kind)


def _volume(_name: str, record: Mapping[str, Any]) -> None:
    _hex(record, "manifest", DIGEST_BYTES)
    for name in ("generation", "bytes", "files"):
        number_of(record, name)
    if record["flushed_wall_ms"] is not None:
        number_of(record, "flushed_wall_ms")


def _hex(record: Mapping[str, Any], name: str, size: int) -> bytes:
    data = bytes.fromhex(typed_of(record, name, str))
    if len(data) != size:
        raise ValueError(f"{name} of {len(data)} bytes, wanted {size}")
    return data
