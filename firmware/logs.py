"""Log bytes of an instance, by offset, from the module that has it."""

from collections.abc import Callable
from dataclasses import dataclass

from firmware.decisions import Decisions
from firmware.inventory import Inventory
from firmware.transfer import LogBytes, TransferError
from protocol.apf import InstanceState


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPart:
    """`data` begins at `start`; above the offset that was asked for, older bytes are gone."""

    start: int
    end: int  # bytes ever logged by this generation
    data: bytes
    ended: bool  # nothing will follow


class InstanceLogs:
    """Loop thread only."""

    def __init__(self, inventory: Inventory, decisions: Decisions) -> None:
        self._inventory = inventory
        self._decisions = decisions

    def read(
        self, instance: str, offset: int, max_bytes: int, done: Callable[[LogPart | str], None]
    ) -> None:
        """`done` gets the bytes, or why they can't be read."""
        assignment = self._decisions.assignments.get(instance)
        place = assignment.place if assignment else None
        if assignment is None or place is None:
            done(f"{instance} is not placed: it has no log yet")
            return
        cnm = self._inventory.get(place.cnm)
        if cnm is None or cnm.boot_id != place.boot_id or cnm.transfers is None:
            done(f"{instance} is on {place.cnm}, which can't be read at the moment")
            return
        status = cnm.observed.get(instance)
        live = status is not None and status.state in (
            InstanceState.STARTING,
            InstanceState.RUNNING,
            InstanceState.STOPPING,
        )

        def read(result: LogBytes | TransferError) -> None:
            if isinstance(result, TransferError):
                done(f"{instance}: {result}")
                return
            at_end = result.start + len(result.data) >= result.end
            done(
                LogPart(
                    start=result.start,
                    end=result.end,
                    data=result.data,
                    ended=at_end and not live,
                )
            )

        cnm.transfers.read_log(instance, offset, max_bytes, read)
