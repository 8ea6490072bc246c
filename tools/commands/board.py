"""`apf board check`: is this board file good, and is what it names there?"""

from dataclasses import asdict

import click

from firmware.board import BoardError, check_board, missing_devices
from tools.errors import CheckFailed
from tools.output import human_bytes, human_cores
from tools.session import ApfGroup, Session


@click.group("board", cls=ApfGroup)
def board_group() -> None:
    """Board descriptions."""


@board_group.command("check")
@click.argument("board")
@click.option("--here", is_flag=True, help="Are its devices on this machine, too?")
@click.pass_obj
def board_check(session: Session, board: str, here: bool) -> None:
    """Read a board (NAME or FILE) as the daemon would; 1 when it is not good.

    A board of real devices may be another machine's: those are only looked for with --here.
    """
    try:
        found = check_board(board, run_dir=session.places.run)
    except BoardError as exc:
        raise _refused(exc, []) from exc
    missing = missing_devices(board, found) if here else []
    if missing:
        raise _refused(missing[0], missing)
    data = {
        **asdict(found),
        "fence_wait_ms": found.timing.fence_wait_ms,
        "fence_wait_min_ms": found.timing.fence_wait_min_ms,
    }
    columns = ["slot", "id", "arch", "cores", "memory", "nvme", "mc", "agent", "window"]
    rows = [
        [
            slot.slot,
            slot.id,
            slot.module.arch,
            human_cores(slot.module.cores_milli),
            human_bytes(slot.module.memory_bytes),
            human_bytes(slot.module.nvme_bytes),
            slot.mc,
            slot.agent,
            slot.window,
        ]
        for slot in found.slots
    ]

    def show() -> None:
        session.out.table(columns, rows)
        hardware = found.hardware
        if hardware.segments:
            own = sum(len(slot.devices) for slot in found.slots)
            session.out.say(
                f"{len(hardware.segments)} SMBus segments, {len(hardware.muxes)} muxes, "
                f"{len(hardware.devices)} parts of the card, {own} of the slots"
            )
        session.out.say(f"board {found.name} is good; fence wait {found.timing.fence_wait_ms} ms")

    session.out.data("board_check", data, show)


def _refused(error: BoardError, missing: list[BoardError]) -> CheckFailed:
    data = {"file": error.file, "line": error.line, "key": error.key, "do": error.do}
    words = [str(other) for other in missing]
    more = f"\n(and {len(missing) - 1} more like it)" if len(missing) > 1 else ""
    return CheckFailed(
        "bad_board",
        f"{error}{more}",
        {**data, "want": error.want, "got": error.got, "missing": words},
    )
