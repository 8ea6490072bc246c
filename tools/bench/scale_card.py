"""The large card of `apf bench scale`: its board, its journal, and who its modules are.

CNMS modules in slots of their own, COMPONENTS components that run, four a module. Everything that
both ends must agree on (boot ids, generations, names) is computed from a number, so that the
daemon's journal and the played modules (`tools.bench.scale_farm`) fit each other.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final

from firmware.assignments import Assignment, Place
from firmware.board import load_board
from firmware.board_types import Board
from firmware.journal import Kind, encode
from firmware.lease import LeaseState
from firmware.loop import Loop
from firmware.workload import Workload, instance_name
from hal.errors import HalError
from hal.linux.clock import LinuxClock
from hal.linux.journal import SqliteJournal
from hal.ports import JournalRecord
from tools.bench.figures import Unmeasured

PER_CNM: Final = 4
REPLICAS: Final = 20  # of each component; five components a workload
PER_WORKLOAD: Final = 5 * REPLICAS
BATCH: Final = 256
CARD_UUID: Final = hashlib.sha256(b"scale card").digest()[:16]


def cnm_name(number: int) -> str:
    return f"cnm{number}"


def uuid_of(number: int) -> bytes:
    return hashlib.sha256(f"cnm {number}".encode()).digest()[:16]


def boot_of(number: int) -> bytes:
    return hashlib.sha256(f"boot {number}".encode()).digest()[:16]


def large_board(cnms: int) -> Board:
    """A mock board with so many slots, all like its first."""
    board = load_board("mock_4", run_dir="/nowhere")
    first = board.slots[0]
    slots = tuple(replace(first, slot=i, id=cnm_name(i)) for i in range(cnms))
    return replace(board, name=f"scale_{cnms}", slots=slots)


@cache
def instances(cnms: int) -> list[tuple[str, int]]:
    """(instance, generation) of all that runs; number n is on module n // PER_CNM."""
    found = []
    for number in range(cnms * PER_CNM):
        workload, rest = divmod(number, PER_WORKLOAD)
        component, index = divmod(rest, REPLICAS)
        found.append((instance_name(f"w{workload}", f"c{component}", index), number + 1))
    return found


def of_cnm(cnms: int, number: int) -> list[tuple[str, int]]:
    """What runs on one module."""
    return instances(cnms)[number * PER_CNM : (number + 1) * PER_CNM]


def write_journal(path: Path, cnms: int) -> int:
    """The decisions of a card that has run for long; how many records. Raises Unmeasured."""
    clock = LinuxClock()
    loop = Loop(clock)
    records = list(_records(cnms))
    waiting = set(range(0, len(records), BATCH))

    def done(start: int, error: HalError | None) -> None:
        if error is not None:
            raise Unmeasured(f"{path}: {error}")
        waiting.discard(start)
        if not waiting:
            loop.stop()

    try:
        store = SqliteJournal(path, loop)
        store.load()
        for start in sorted(waiting):
            batch = records[start : start + BATCH]
            store.submit(batch, lambda error, start=start: done(start, error))  # type: ignore[misc]
        loop.run()
        store.close()
    except HalError as exc:
        raise Unmeasured(f"{path}: {exc}") from exc
    finally:
        clock.close()
    return len(records)


def _records(cnms: int) -> Iterator[JournalRecord]:
    running = instances(cnms)
    yield _record(Kind.META, "card_uuid", {"value": CARD_UUID.hex()})
    yield _record(Kind.META, "epoch", {"value": 1})
    yield _record(Kind.META, "generation", {"value": len(running)})
    for number in range(-(-len(running) // PER_WORKLOAD)):
        workload = _workload(f"w{number}", len(running) - number * PER_WORKLOAD)
        document = {"workload": workload.to_json(), "deleted": False}
        yield _record(Kind.WORKLOAD, workload.name, document)
    for number in range(cnms):
        record = {
            "uuid": uuid_of(number).hex(),
            "boot_id": boot_of(number).hex(),
            "state": LeaseState.LEASED.value,
            "draining": False,
            "power_wanted": True,
        }
        yield _record(Kind.CNM, cnm_name(number), record)
    for number, (name, generation) in enumerate(running):
        workload_name, component, index = name.split("/")
        cnm = number // PER_CNM
        assignment = Assignment(
            instance=name,
            workload=workload_name,
            component=component,
            index=int(index),
            place=Place(cnm=cnm_name(cnm), boot_id=boot_of(cnm), generation=generation),
        )
        yield _record(Kind.ASSIGNMENT, name, assignment.to_json())


def _record(kind: Kind, key: str, value: dict[str, Any]) -> JournalRecord:
    return JournalRecord(kind=kind, key=key, value=encode(kind, key, value))


def _workload(name: str, most: int) -> Workload:
    components = []
    for number in range(PER_WORKLOAD // REPLICAS):
        replicas = min(REPLICAS, most - number * REPLICAS)
        if replicas <= 0:
            break
        components.append(
            {
                "name": f"c{number}",
                "image": "host",
                "argv": ["serve"],
                "resources": {"cpu_milli": 500, "memory_bytes": 64 << 20},
                "replicas": replicas,
                "restart": {"policy": "always"},
            }
        )
    return Workload.from_json({"schema": "apf-workload/1", "name": name, "components": components})
