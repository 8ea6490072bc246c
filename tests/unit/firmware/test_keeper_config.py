"""firmware.keeper_config: what a board becomes for its keeper and its CNMs."""

from pathlib import Path

import pytest

from firmware.board import load_board
from firmware.cnm.config import CnmConfig
from firmware.fields import FieldError
from firmware.keeper_config import KeeperPlan, plan_keeper
from hal.local.config import parse_config


def plan(run: Path, board: str = "local") -> KeeperPlan:
    return plan_keeper(
        load_board(board, run_dir=str(run)),
        run=run,
        state=run / "state",
        python="/usr/bin/python3",
        env={"PYTHONPATH": "/x"},
    )


def test_the_keeper_and_every_init_accept_what_is_made_for_them(tmp_path: Path) -> None:
    made = plan(tmp_path)
    keeper = parse_config(made.keeper, tmp_path)
    assert [slot.id for slot in keeper.slots] == ["cnm0", "cnm1", "cnm2", "cnm3"]
    for slot in keeper.slots:
        place, config = made.inits[slot.id]
        assert CnmConfig.from_json(config.to_json()) == config
        assert slot.argv[-1] == str(place)
        assert {link.name: link.baud for link in slot.links} == {"mc": 921600, "agent": 921600}
        assert config.mc == f"serial:{tmp_path}/tty/{slot.id}-mc.cnm?baud=921600"
        assert config.cgroup == keeper.cgroup_of(slot)


def test_the_init_files_lie_where_no_power_cycle_removes_them(tmp_path: Path) -> None:
    place, config = plan(tmp_path).inits["cnm0"]
    assert not place.is_relative_to(config.run_dir)
    assert not place.is_relative_to(tmp_path / "cnm")


def test_a_link_that_no_keeper_makes_is_refused_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "b.toml"
    file.write_text(
        '[board]\nname = "b"\nkind = "local"\ninherit = "local"\n'
        '[slot_default]\nmc = "serial:/dev/ttyS${slot}?baud=9600"\n'
    )
    with pytest.raises(FieldError, match="keeper"):
        plan(tmp_path, str(file))
