"""A board of real hardware: segments, muxes, parts, ports and power sequences, as TOML."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from firmware.board import load_board
from firmware.board_file import BoardError
from firmware.board_hardware import MUX_CHANNELS, Hardware, Place, place_of
from firmware.board_types import Board
from tests.fuzz.reader import Reader, all_keys, edited
from tests.fuzz.target import Check, Target
from tests.fuzz.targets.documents import toml

MODULE: Final[dict[str, Any]] = {
    "arch": "arm64",
    "cores_milli": 1000,
    "memory_bytes": 1 << 30,
    "nvme_bytes": 0,
    "link_mbit": 1000,
    "runtimes": ["oci"],
}
BOARD: Final[dict[str, Any]] = {
    "board": {"name": "x", "kind": "linux", "inherit": "base"},
    "pcie": {"upstream": "0000:01:00.0", "speed_mtps": 32000, "width": 16},
    "smbus": [
        {"id": "mod0", "bus": "i2c:1", "clock_khz": 400},
        {"id": "mod1", "bus": "i2c:2", "clock_khz": 100},
    ],
    "mux": [
        {"id": "mux0", "part": "pca9548", "at": "mod0/0x70"},
        {"id": "mux1", "part": "pca9546", "at": "mod0/mux0.3/0x71"},
    ],
    "device": [
        {"id": "fru", "role": "fru", "part": "24c64", "at": "mod0/0x50", "size_bytes": 8192},
        {
            "id": "vrm",
            "role": "vrm",
            "part": "tps53679",
            "at": "mod0/0x60",
            "rail": "core",
            "nominal_mv": 850,
            "vout_low_mv": 807,
            "vout_high_mv": 892,
            "iout_high_ma": 120000,
            "temp_high_mdegc": 110000,
        },
        {
            "id": "fan0",
            "role": "fan",
            "part": "emc2305",
            "at": "mod1/0x2c",
            "channel": 0,
            "rpm_low": 1500,
            "rpm_high": 16000,
        },
        {
            "id": "temp",
            "role": "temp",
            "part": "tmp464",
            "at": "mod0/mux0.3/mux1.1/0x4a",
            "channel": 2,
            "temp_high_mdegc": 85000,
            "temp_critical_mdegc": 95000,
        },
        {
            "id": "power",
            "role": "gpio",
            "part": "pca9555",
            "at": "mod0/0x20",
            "lines": {"en0": 0, "good0": 8},
        },
    ],
    "slot": [
        {
            "slot": 0,
            "id": "a",
            "agent": "serial:/dev/ttyS1?baud=9600",
            "mc": "smbus:mod0/mux0.0/0x30",
            "window": "pci:0000:02:00.0/00.0/bar2?side=a",
            "window_bytes": 1 << 20,
            "power": "pci_slot:0?fence=power",
            "module": MODULE,
            "pcie": {"port": "0000:02:00.0", "speed_mtps": 32000, "width": 4},
            "device": [
                {
                    "id": "meter",
                    "role": "power",
                    "part": "ina226",
                    "at": "mod0/mux0.0/0x40",
                    "shunt_uohm": 2000,
                    "bus_low_mv": 11400,
                    "bus_high_mv": 12600,
                    "power_high_mw": 75000,
                },
                {
                    "id": "drive",
                    "role": "nvme",
                    "part": "nvme_basic",
                    "at": "mod0/mux0.0/0x6a",
                    "temp_high_mdegc": 70000,
                },
            ],
            "power_step": [
                {"do": "set", "line": "power.en0", "within_ms": 1},
                {"do": "wait", "line": "power.good0", "within_ms": 50},
            ],
        }
    ],
}
WORDS: Final = (
    *all_keys(BOARD),
    *("mod0/mux0.8/0x30", "mod0/mux0.0/0x78", "mod0/mux0.٣/0x30", "mod0/mux1.0/0x30", "0x4a"),
    *("mod1/mux0.0/0x30", "mod0//0x30", "power.", "0000:02:1f.7", "mux0.", "mod0/mux0.²/0x30"),
)


def board_hardware(scratch: Path) -> Check:
    file = scratch / "x.toml"

    def check(data: bytes) -> bool:
        if not data or data[0] < 9:
            data = toml(edited(BOARD, Reader(data[1:]), WORDS)).encode()
        file.write_bytes(data)
        try:
            loaded = load_board(file, run_dir="/run/apf", host_arch="x86_64")
        except BoardError as exc:
            assert exc.line >= 0
            str(exc).encode()
            return False
        _sound(loaded)
        return True

    return check


def _sound(board: Board) -> None:
    """Every part is somewhere, behind muxes that are, and nothing answers beside another."""
    hardware = board.hardware
    segments = {segment.id for segment in hardware.segments}
    channels = {(m.place.address, c) for m in hardware.muxes for c in range(MUX_CHANNELS[m.part])}
    devices = [*hardware.devices, *(d for slot in board.slots for d in slot.devices)]
    for part in (*hardware.muxes, *devices):
        assert part.place.segment in segments
        assert 0x08 <= part.place.address <= 0x77
        assert set(part.place.muxes) <= channels
    names = [part.id for part in (*hardware.muxes, *devices)]
    assert len(set(names)) == len(names)
    lines = {device.id: device.lines for device in devices}
    for slot in board.slots:
        assert all(step.line in lines[step.device] for step in slot.power_steps)
    text = "mod0/mux0.0/0x30"
    assert isinstance(place_of(text, hardware), Place | str)
    assert isinstance(place_of(text, Hardware()), str)


def _seeds() -> Iterable[bytes]:
    yield toml(BOARD).encode()
    yield b"\0"
    for place in range(24):
        yield bytes([0, place % 6, place % 5, place % 9, 4, 4, 0, place])
        yield bytes([0, 4, place % 5, place % 9, 255, 5, 1, place])
        yield bytes([0, 5, 0, place % 12, 4, 2, place, 4, 2, place])


TARGETS = (
    Target(
        name="board_hardware",
        text="a board of real hardware as TOML, as text or edited: buses, parts, ports, steps",
        make=board_hardware,
        seeds=_seeds,
        words=tuple(word.encode() for word in WORDS),
        max_bytes=4096,
    ),
)
