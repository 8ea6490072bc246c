"""What a board says of PCIe and SMBus: what comes with the software, and what is refused where."""

import tomllib

import pytest

from firmware.board import BoardError, load_board, missing_devices, on_mock
from firmware.board_file import find_board
from firmware.board_hardware import Place

RUN = "/run/apf"
GOOD = """\
[board]
name = "bench"
kind = "linux"

[pcie]
upstream = "0000:01:00.0"
speed_mtps = 32000
width = 16

[[smbus]]
id = "mod0"
bus = "i2c:1"
clock_khz = 400

[[mux]]
id = "mux0"
part = "pca9548"
at = "mod0/0x70"

[[mux]]
id = "mux1"
part = "pca9546"
at = "mod0/mux0.7/0x71"

[[device]]
id = "vrm"
role = "vrm"
part = "pmbus"
at = "mod0/0x60"
rail = "core"
nominal_mv = 850
vout_low_mv = 800
vout_high_mv = 900
iout_high_ma = 60000
temp_high_mdegc = 110000

[[device]]
id = "fan0"
role = "fan"
part = "emc2305"
at = "mod0/0x2c"
channel = 0
rpm_low = 1000
rpm_high = 9000

[[device]]
id = "fan1"
role = "fan"
part = "emc2305"
at = "mod0/0x2c"
channel = 1
rpm_low = 1000
rpm_high = 9000

[[device]]
id = "pins"
role = "gpio"
part = "pca9555"
at = "mod0/0x20"
lines = { en = 0, good = 8 }

[slot_default]
power = "none"
window_bytes = 1048576

[slot_default.module]
arch = "arm64"
cores_milli = 1000
memory_bytes = 1
link_mbit = 1
runtimes = ["oci"]

[[slot]]
slot = 0
id = "a"
mc = "smbus:mod0/mux0.0/0x30"
agent = "serial:/dev/ttyS4?baud=115200"
window = "pci:0000:01:00.0/bar2?side=a"
pcie = { port = "0000:00:01.0", speed_mtps = 16000, width = 4 }

[[slot.device]]
id = "meter"
role = "power"
part = "ina226"
at = "mod0/mux0.0/0x40"
shunt_uohm = 2000
bus_low_mv = 11000
bus_high_mv = 13000
power_high_mw = 75000

[[slot.power_step]]
do = "set"
line = "pins.en"
within_ms = 1

[[slot.power_step]]
do = "wait"
line = "pins.good"
within_ms = 50
"""


@pytest.fixture
def board(tmp_path):
    def write(text):
        path = tmp_path / "bench.toml"
        path.write_text(text)
        return path

    return write


def test_all_of_it_is_read(board):
    found = load_board(board(GOOD), run_dir=RUN)
    hardware = found.hardware
    assert (hardware.switch.upstream, hardware.switch.width) == ("0000:01:00.0", 16)
    assert hardware.muxes[1].place == Place(segment="mod0", muxes=((0x70, 7),), address=0x71)
    vrm, fan0, fan1, pins = hardware.devices
    assert (vrm.rail, vrm.numbers["nominal_mv"]) == ("core", 850)
    assert (fan0.numbers["channel"], fan1.numbers["channel"]) == (0, 1)
    assert pins.lines == {"en": 0, "good": 8}
    (slot,) = found.slots
    assert slot.pcie.speed_mtps == 16000
    assert slot.devices[0].place.muxes == ((0x70, 0),)
    assert [(step.line, step.wait) for step in slot.power_steps] == [("en", False), ("good", True)]


BAD = {  # what is changed; the key, a text that its line holds (the last such line), a word said
    "a mux that is not there": ("mod0/mux0.7", "mod0/mux9.7", "mux[1].at", "mux9.7", "mux0"),
    "a channel that a mux has not": ("mux0.7/0x71", "mux0.8/0x71", "mux[1].at", "mux0.8", "0..7"),
    "a segment that is not there": ("mod0/0x60", "mod1/0x60", "device[0].at", "mod1", "'mod0'"),
    "an address that is reserved": ("0/0x60", "0/0x78", "device[0].at", "0x78", "0x08..0x77"),
    "an address that is no hexadecimal": ("0/0x60", "0/96", "device[0].at", "/96", "0xADDRESS"),
    "limits upside down": (
        "low_mv = 800", "low_mv = 850", "device[0].vout_low_mv", "= 850", "nominal_mv",
    ),
    "a limit that is missing": (
        "iout_high_ma = 60000\n", "", "device[0].iout_high_ma", "", "this key",
    ),
    "a part of another role": ('"pmbus"', '"tmp75"', "device[0].part", "tmp75", "pmbus"),
    "two parts at one address": ("mod0/0x20", "mod0/0x60", "device[3].at", "0x60", "vrm"),
    "a part behind a mux at an address before it": (
        "mux0.0/0x40", "mux0.0/0x60", "slot[0].device[0].at", "mux0.0/0x60", "vrm",
    ),
    "a fan channel twice": ("channel = 1", "channel = 0", "device[2].at", "0x2c", "fan0"),
    "an id twice": ('id = "fan1"', 'id = "fan0"', "device[2].id", "fan0", "device[1]"),
    "a bit twice": ("good = 8", "good = 0", "device[3].lines.good", "good = 0", "en"),
    "a line that is not there": (
        "pins.good", "pins.god", "slot[0].power_step[1].line", "pins.god", "'pins.good'",
    ),
    "a speed that PCIe has not": (
        "= 16000", "= 12000", "slot[0].pcie.speed_mtps", "12000", "8000",
    ),
    "a port that is none": ("0000:00:01.0", "00:01.0", "slot[0].pcie.port", "00:01.0", "0000:02"),
    "an SMBus link to nowhere": ("mux0.0/0x30", "mux0.9/0x30", "slot[0].mc", "mux0.9", "0..7"),
    "a window with no side": ("bar2?side=a", "bar2", "slot[0].window", "bar2", "side=a"),
    "a window by the keeper": (
        "pci:0000:01:00.0/bar2?side=a", "shm:a", "slot[0].window", "shm:a", "pci, vfio, map",
    ),
    "a BAR that is window and mailbox": (
        "smbus:mod0/mux0.0/0x30", "mailbox:0000:01:00.0/bar2?side=a", "slot[0].window",
        "window = ", "slot[0].mc",
    ),
    "a mailbox without a BAR": (
        "smbus:mod0/mux0.0/0x30", "mailbox:0000:01:00.0", "slot[0].mc", "mailbox:", "bar2",
    ),
    "power by the keeper": ('= "none"', '= "local"', "slot[0].power", "local", "pci_slot"),
    "a clock that SMBus has not": ("= 400", "= 500", "smbus[0].clock_khz", "= 500", "100"),
    "an unknown key of a device": (
        'rail = "core"', 'rail = "core"\ncolour = "red"', "device[0].colour", "colour", "rail",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "key", "marker", "words"), BAD.values(), ids=BAD.keys())
def test_what_is_wrong_is_refused_at_its_line_with_what_was_wanted(
    board, old, new, key, marker, words
):
    assert old in GOOD
    path = board(GOOD.replace(old, new, 1))
    with pytest.raises(BoardError) as refused:
        load_board(path, run_dir=RUN)
    error = refused.value
    assert (error.key, error.file) == (key, str(path))
    assert words in str(error)
    lines = path.read_text().splitlines()
    where = max(n for n, line in enumerate(lines, 1) if marker in line) if marker else 25
    assert error.line == where, lines[error.line - 1]


def test_what_is_not_on_this_machine_is_named_with_its_line(board):
    path = board(GOOD)
    found = load_board(path, run_dir=RUN)
    missing = missing_devices(path, found, exists=lambda path: path == "/dev/ttyS4")
    assert [(error.key, error.line) for error in missing] == [("slot[0].window", 78)]
    assert "/sys/bus/pci/devices/0000:01:00.0/resource2" in str(missing[0])
    assert missing_devices(path, found, exists=lambda path: True) == []


def test_any_board_can_be_simulated(board):
    found = on_mock(load_board(board(GOOD), run_dir=RUN))
    (slot,) = found.slots
    assert (found.kind, slot.mc, slot.window, slot.power) == ("mock", "mock:a-mc", "mock:a", "mock")
    assert (found.hardware.devices, found.outside_ttys) != ((), ())


# --- rev_a, against what the text at its top says ---


def test_rev_a_has_what_its_heading_promises():
    found = load_board("rev_a", run_dir=RUN)
    assert [slot.slot for slot in found.slots] == list(range(16))
    assert (found.hardware.switch.speed_mtps, found.hardware.switch.width) == (32_000, 16)
    assert [slot.pcie.port for slot in found.slots] == [f"0000:02:{n:02x}.0" for n in range(16)]
    assert {(slot.pcie.speed_mtps, slot.pcie.width) for slot in found.slots} == {(32_000, 4)}
    assert [segment.bus for segment in found.hardware.segments] == ["i2c:1", "i2c:2"]
    assert [slot.agent for slot in found.slots] == [
        f"serial:/dev/ttyAPF{n}?baud=3000000" for n in range(16)
    ]
    channels = [
        (slot.devices[0].place.segment, slot.devices[0].place.muxes) for slot in found.slots
    ]
    assert channels == [(f"mod{n // 8}", ((0x70, n % 8),)) for n in range(16)]
    roles = [device.role for device in found.hardware.devices]
    assert {role: roles.count(role) for role in roles} == {
        "fru": 1, "vrm": 4, "temp": 5, "fan": 8, "gpio": 4,
    }  # fmt: skip
    for slot in found.slots:
        assert [device.role for device in slot.devices] == ["power", "temp", "fru", "nvme"]
        assert [step.line for step in slot.power_steps] == [
            f"present{slot.slot}", f"en{slot.slot}", f"good{slot.slot}", f"run{slot.slot}",
        ]  # fmt: skip


def test_rev_a_says_nothing_twice_by_accident():
    """Every line of every expander is used by exactly one slot, once."""
    found = load_board("rev_a", run_dir=RUN)
    used = [(step.device, step.line) for slot in found.slots for step in slot.power_steps]
    there = [(d.id, line) for d in found.hardware.devices for line in d.lines]
    assert sorted(used) == sorted(there)


def test_the_qemu_boards_are_two_ends_of_the_same_links():
    card, module = (load_board(name, run_dir=RUN) for name in ("qemu_q35", "qemu_cnm"))
    assert (card.kind, module.kind) == ("linux", "cnm")
    assert [slot.id for slot in card.slots] == [slot.id for slot in module.slots]
    assert card.timing == module.timing
    assert {slot.window_bytes for slot in card.slots} == {s.window_bytes for s in module.slots}
    assert all(slot.window.endswith("side=a") for slot in card.slots)
    assert all(slot.window.endswith("side=b") for slot in module.slots)
    ttys = [spec for slot in card.slots for spec in (slot.mc, slot.agent)]
    assert len(set(ttys)) == len(ttys)
    heading = find_board("qemu_q35").read_text().split("[board]")[0]
    assert all(slot.pcie.port[5:].startswith("00:1") for slot in card.slots)
    assert "addr=0x10" in heading
    assert tomllib.loads(find_board("qemu_cnm").read_text())["board"]["inherit"] == "qemu_q35"
