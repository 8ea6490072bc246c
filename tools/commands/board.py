"""`apf board check`: is this board file good, and is what it names there?"""

from dataclasses import asdict

import click

from firmware.board import BoardError, check_board
from tools.errors import CheckFailed
from tools.output import human_bytes, human_cores
from tools.session import ApfGroup, Session


@click.group("board", cls=ApfGroup)
def board_group() -> None:
    """Board descriptions."""


@board_group.command("check")
@click.argument("board")
@click.pass_obj
def board_check(session: Session, board: str) -> None:
    """Read a board (NAME or FILE) as the daemon would; 1 when it is not good."""
    try:
        found = check_board(board, run_dir=session.places.run)
    except BoardError as exc:
        data = {"file": exc.file, "line": exc.line, "key": exc.key, "do": exc.do}
        raise CheckFailed(
            "bad_board", str(exc), {**data, "want": exc.want, "got": exc.got}
        ) from exc
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
        session.out.say(f"board {found.name} is good; fence wait {found.timing.fence_wait_ms} ms")

    session.out.data("board_check", data, show)
