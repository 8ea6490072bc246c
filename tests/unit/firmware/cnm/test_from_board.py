"""What an init is told by a board of kind cnm, and that it survives the way through JSON."""

from dataclasses import replace
from pathlib import Path

import pytest

from firmware.board import BoardError
from firmware.cnm.app import init_main
from firmware.cnm.config import CnmConfig
from firmware.cnm.from_board import cnm_config
from firmware.fields import FieldError

RUN, STATE = Path("/run/apf-cnm"), Path("/var/lib/apf-cnm")


def test_a_module_of_qemu_cnm_is_told_its_own_ends_and_the_cards_timing():
    found = cnm_config("qemu_cnm", 1, run=RUN, state=STATE)
    assert (found.id, found.slot, found.cgroup) == ("cnm1", 1, "/apf/cnm1")
    assert found.mc == "serial:/dev/ttyS4?baud=115200"
    assert found.window == "pci:0000:00:10.0/00.0/bar2?side=b&bytes=16777216"
    assert (found.timing.heartbeat_ms, found.timing.stop_ms) == (500, 5000)
    assert (found.run_dir, found.state_dir) == (str(RUN), str(STATE))


def test_it_survives_the_way_through_json_with_and_without_a_window():
    found = cnm_config("qemu_cnm", 0, run=RUN, state=STATE)
    for config in (found, replace(found, window="")):
        assert CnmConfig.from_json(config.to_json()) == config


def test_a_config_from_before_windows_had_names_is_read():
    found = cnm_config("qemu_cnm", 0, run=RUN, state=STATE)
    old = found.to_json().replace(b'"window": "' + found.window.encode() + b'"', b'"window": ""')
    assert CnmConfig.from_json(old.replace(b', "window": ""', b"")).window == ""
    with pytest.raises(FieldError, match="window"):
        CnmConfig.from_json(old.replace(b'"window": ""', b'"window": 7'))


def test_a_board_of_another_kind_and_a_slot_that_is_not_there_are_refused():
    with pytest.raises(BoardError, match="wanted cnm, found linux"):
        cnm_config("qemu_q35", 0, run=RUN, state=STATE)
    with pytest.raises(BoardError, match="one of 0, 1"):
        cnm_config("qemu_cnm", 7, run=RUN, state=STATE)


@pytest.mark.parametrize("words", [[], ["--config", "x", "--board", "qemu_cnm"]])
def test_an_init_is_told_by_a_config_or_by_a_board_and_not_by_both(words, capsys):
    with pytest.raises(SystemExit) as ended:
        init_main(words)
    assert ended.value.code == 2
    assert "one of --config and --board" in capsys.readouterr().err


def test_an_init_whose_board_is_wrong_says_so_and_starts_nothing(capsys):
    assert init_main(["--board", "qemu_q35", "--slot", "0"]) == 1
    assert "wanted cnm, found linux" in capsys.readouterr().err
