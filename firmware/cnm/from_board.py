"""What a CNM's init is told, from a board of kind cnm: the module's own view of its links.

`python -m firmware.cnm.init --board NAME --slot N --run DIR --state DIR` reads it so; on the local
board the keeper passes the same as JSON (`firmware.keeper_config`).
"""

from pathlib import Path

from firmware.board import BoardError, load_board
from firmware.cnm.config import CnmConfig, CnmTiming


def cnm_config(source: str, slot_number: int, *, run: Path, state: Path) -> CnmConfig:
    """The module in one slot. `run` and `state` are absolute. Raises BoardError."""
    board = load_board(source, run_dir=run)
    if board.kind != "cnm":
        do = "give a board that says how a module sees itself, such as qemu_cnm"
        raise BoardError(board.files[0], "board.kind", "cnm", board.kind, do=do)
    slot = next((slot for slot in board.slots if slot.slot == slot_number), None)
    if slot is None:
        known = ", ".join(str(slot.slot) for slot in board.slots)
        raise BoardError(board.files[0], "slot", f"one of {known}", str(slot_number))
    return CnmConfig(
        id=slot.id,
        slot=slot.slot,
        vendor_id=board.vendor_id,
        state_dir=str(state),
        run_dir=str(run),
        cgroup=f"/apf/{slot.id}",
        mc=slot.mc,
        agent=slot.agent,
        module=slot.module,
        timing=CnmTiming(
            heartbeat_ms=board.timing.heartbeat_ms,
            telemetry_ms=board.timing.telemetry_ms,
            stop_ms=board.timing.stop_ms,
            clock_rate_ppm=board.timing.clock_rate_ppm,
        ),
        window=f"{slot.window}&bytes={slot.window_bytes}",
    )
