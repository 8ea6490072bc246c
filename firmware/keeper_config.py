"""From a board to what its keeper and its CNMs' inits are told.

On a board of kind linux the modules are not the keeper's: it has no slots there, and holds the
descriptors of devices alone (DESIGN D12). The keeper's file: hal/local/config.py; an init's:
firmware/cnm/config.py.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from firmware.board_types import Board, Slot
from firmware.cnm.config import CnmConfig, CnmTiming
from firmware.fields import FieldError

CNM_END: Final = ".cnm"  # behind the card's tty: the CNM's end of the same line


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperPlan:
    """The keeper's config, and the inits' by CNM id with the file that each is read from."""

    keeper: Mapping[str, object]
    inits: Mapping[str, tuple[Path, CnmConfig]]


def plan_keeper(
    board: Board, *, run: Path, state: Path, python: str, env: Mapping[str, str]
) -> KeeperPlan:
    """Raises FieldError when a slot's links are not those that a keeper makes. `run` and `state`
    are absolute."""
    run_id = hashlib.sha256(str(run).encode()).hexdigest()[:12]
    slots: list[object] = []
    inits: dict[str, tuple[Path, CnmConfig]] = {}
    for index, slot in enumerate(board.slots if board.kind == "local" else ()):
        bauds = {
            name: _baud(slot, index, name, spec, run)
            for name, spec in (("mc", slot.mc), ("agent", slot.agent))
        }
        place = run / "cnm-config" / f"{slot.id}.json"
        inits[slot.id] = (
            place,
            CnmConfig(
                id=slot.id,
                slot=slot.slot,
                vendor_id=board.vendor_id,
                state_dir=str(state / "cnm" / slot.id),
                run_dir=str(run / "cnm" / slot.id),
                cgroup=f"/apf/{run_id}/{slot.id}",
                mc=_far_end(slot.mc),
                agent=_far_end(slot.agent),
                module=slot.module,
                timing=CnmTiming(
                    heartbeat_ms=board.timing.heartbeat_ms,
                    telemetry_ms=board.timing.telemetry_ms,
                    stop_ms=board.timing.stop_ms,
                    clock_rate_ppm=board.timing.clock_rate_ppm,
                ),
            ),
        )
        slots.append(
            {
                "slot": slot.slot,
                "id": slot.id,
                "window_bytes": slot.window_bytes,
                "links": [{"name": name, "baud": baud} for name, baud in bauds.items()],
                "argv": [python, "-m", "firmware.cnm.init", "--config", str(place)],
            }
        )
    keeper = {"run_id": run_id, "namespaces": "auto", "env": dict(env), "cwd": "/", "slots": slots}
    return KeeperPlan(keeper=keeper, inits=inits)


def _baud(slot: Slot, index: int, name: str, spec: str, run: Path) -> int:
    wanted = f"serial:{run}/tty/{slot.id}-{name}"
    place, _, options = spec.partition("?baud=")
    if place != wanted or not options.isdecimal():
        raise FieldError(
            ("slot", index, name),
            f"{wanted}?baud=N, the line that the keeper of a local board makes",
            repr(spec),
        )
    return int(options)


def _far_end(spec: str) -> str:
    place, mark, options = spec.partition("?")
    return f"{place}{CNM_END}{mark}{options}"
