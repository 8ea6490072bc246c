"""Recordings of QEMU's devices behind the kernel's drivers, played back: the card's own code sees
here what it saw there, on any machine.

The files were written in a virtual machine (tests/hil/cases/recordings.py, which also tells when a
device or driver answers otherwise than its recording).
"""

from typing import Any

import pytest

from hal.registry import Registry, World
from hal.replay import ReplayMismatch
from tests.contract.worlds import RealWorld, VirtualWorld
from tests.golden.scenarios import RECORDINGS, SCENARIOS

WANT: dict[str, dict[str, Any]] = {
    "edu": {
        "ids": 0x11E8_1234,
        "identification": 0x0100_00ED,
        "inverse": 0xEDCB_A987,
        "interrupts": [1],
        "factorial": 3_628_800,
        "acknowledged": 1,
    },
    "eeprom": {"driver": "i801_smbus", "after": b"recorded", "restored": True, "rest": True},
    "cxl": {
        "total_bytes": 256 << 20,
        "label_bytes": 1 << 20,
        "firmware": "BWFW VERSION 00",
        "persistent_units": 1,
        "opcodes": [
            *(0x0100, 0x0101, 0x0102, 0x0103, 0x0200, 0x0300, 0x0301, 0x0400, 0x0401),
            *(0x4000, 0x4100, 0x4102, 0x4103),
        ],
        "label": b"recorded",
        "restored": True,
        "health": "Disabled",
    },
}


def test_every_recording_has_its_scenario() -> None:
    assert {path.stem for path in RECORDINGS.glob("*.jsonl")} == SCENARIOS.keys() == WANT.keys()


@pytest.mark.parametrize("made", [RealWorld, VirtualWorld])
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_cards_code_sees_what_it_saw_on_the_device(name: str, made: type) -> None:
    world = made()
    node = None if isinstance(world, RealWorld) else world.kernel.node("suite")
    openers = World(reactor=world.reactor, node=node)
    path = str(RECORDINGS / f"{name}.jsonl")
    seen = SCENARIOS[name](Registry(openers), world, f"replay:{path}")
    openers.replays[path].check_finished()
    world.close()
    assert seen == WANT[name]


def test_another_drive_of_the_device_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.golden.scenarios.LIVENESS", 0x08)
    world = RealWorld()
    path = RECORDINGS / "edu.jsonl"
    with pytest.raises(ReplayMismatch, match=r'edu\.jsonl:6: .*"?offset=4.*found.*offset=8'):
        SCENARIOS["edu"](Registry(World(reactor=world.reactor)), world, f"replay:{path}")
    world.close()
