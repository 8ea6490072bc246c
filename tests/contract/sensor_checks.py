"""What every driver of `firmware.sensors` must give for registers that the world sets: the same
checks on the register models, and on i2c-stub with the kernel's drivers in between.

Numbers are the data sheets' own examples where they have any.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pytest

from firmware.sensors.eeprom import Eeprom, read_fru, write_fru
from firmware.sensors.emc2305 import Emc2305
from firmware.sensors.ina226 import Ina226
from firmware.sensors.max31790 import Max31790
from firmware.sensors.nvme_basic import NvmeBasic
from firmware.sensors.pca9555 import Pca9555
from firmware.sensors.pmbus import PmbusVrm, status_words
from firmware.sensors.steps import At, BadAnswer, Steps, WrongPart
from firmware.sensors.tmp75 import Tmp75, Tmp1075
from firmware.sensors.tmp464 import Tmp464
from hal.errors import Refused
from hal.smbus_ports import SmbusCapabilities
from protocol.fru import BoardInfo, Fru, FruField


class Poke(Protocol):
    def __call__(self, register: int, data: bytes, *, block: bool = False) -> None: ...


@dataclass(kw_only=True)
class Chip:
    """A part with registers that the world can set."""

    at: At
    capabilities: SmbusCapabilities
    poke: Poke  # register, bytes in the order of the wire
    run: Callable[[Steps[Any]], Any]  # carries steps out; raises what they raise

    def word(self, register: int, value: int) -> None:
        """A word whose most significant byte comes first."""
        self.poke(register, (value & 0xFFFF).to_bytes(2, "big"))


def tmp75(chip: Chip) -> None:
    driver = Tmp75(chip.at)
    chip.poke(0x01, b"\x60")
    # SBOS288, table 4: 127.9375, 100, 80, 50, 25, 0.25, 0, -0.25, -25, -55 degrees
    for word, want in (
        (0x7FF0, 127_938), (0x6400, 100_000), (0x5000, 80_000), (0x3200, 50_000),
        (0x1900, 25_000), (0x0040, 250), (0x0000, 0), (0xFFC0, -250), (0xE700, -25_000),
        (0xC900, -55_000),
    ):  # fmt: skip
        chip.word(0x00, word)
        assert chip.run(driver.read()) == {"temp_mdegc": want}
    assert chip.run(driver.identify()) == "TMP75"
    chip.word(0x00, 0x8000)  # -128 degrees: what a wrong part may well give
    with pytest.raises(WrongPart, match="no temperature"):
        chip.run(driver.identify())
    chip.poke(0x01, b"\x01")  # left shut down, 9 bits
    chip.run(driver.configure())
    assert chip.run(driver.at.read_byte(0x01)) == 0x60
    chip.run(driver.set_limits(-5_000, 70_500))
    assert chip.run(driver.limits()) == {"t_low_mdegc": -5_000, "t_high_mdegc": 70_500}


def tmp1075(chip: Chip) -> None:
    driver = Tmp1075(chip.at)
    chip.word(0x0F, 0x7500)
    assert chip.run(driver.identify()) == "TMP1075"
    chip.word(0x00, 0x1910)
    assert chip.run(driver.read()) == {"temp_mdegc": 25_063}
    chip.word(0x0F, 0x0075)
    with pytest.raises(WrongPart, match="0x0075, want 0x7500"):
        chip.run(driver.identify())


def tmp464(chip: Chip) -> None:
    driver = Tmp464(chip.at, channels=(0, 1, 2))
    chip.word(0xFE, 0x5449)
    chip.word(0xFF, 0x1468)
    assert chip.run(driver.identify()) == "TMP464"
    # SBOS835, table 1: 25, 191.9375 and -55 degrees
    chip.word(0x00, 0x0C80)
    chip.word(0x01, 0x5FF8)
    chip.word(0x02, 0xE480)
    chip.word(0x23, 0)
    want = {"temp_mdegc": 25_000, "remote1_mdegc": 191_937, "remote2_mdegc": -55_000}
    assert chip.run(driver.read()) == want
    chip.word(0x23, 1 << 8)  # remote channel 1 is open
    assert chip.run(driver.read()) == want | {"remote1_mdegc": None}
    chip.word(0x30, 0x0FBC)
    chip.run(driver.configure())
    assert chip.run(driver.at.read_be(0x30)) == 0x0F9C
    chip.word(0xFF, 0x0468)  # a TMP468
    with pytest.raises(WrongPart, match="0x0468"):
        chip.run(driver.identify())


def ina226(chip: Chip) -> None:
    # SBOS547, 7.5.1 and table 4: 2 milliohm, 10 A, 1 mA a bit: calibration 0A00h; shunt 8000,
    # bus 9584 (11.98 V), current 10000 (10 A), power 4792 (119.8 W)
    driver = Ina226(chip.at, shunt_uohm=2000, current_lsb_ua=1000)
    assert driver.calibration == 0x0A00
    chip.word(0xFE, 0x5449)
    chip.word(0xFF, 0x2260)
    assert chip.run(driver.identify()) == "INA226"
    chip.run(driver.configure())
    assert chip.run(driver.at.read_be(0x05)) == 0x0A00
    for register, value in ((0x01, 8000), (0x02, 0x2570), (0x04, 0x2710), (0x03, 0x12B8)):
        chip.word(register, value)
    want = {"shunt_uv": 20_000, "bus_mv": 11_980, "current_ma": 10_000, "power_mw": 119_800}
    assert chip.run(driver.read()) == want
    chip.word(0x04, -0x2710)
    assert chip.run(driver.read())["current_ma"] == -10_000
    chip.word(0x05, 0)  # a brown-out
    chip.run(driver.read())
    assert chip.run(driver.at.read_be(0x05)) == 0x0A00


def pmbus(chip: Chip) -> None:
    driver = PmbusVrm(chip.at, page=0)
    chip.poke(0x98, b"\x33")
    chip.poke(0x99, b"TI", block=True)
    chip.poke(0x9A, b"TPS53679", block=True)
    assert chip.run(driver.identify()) == "TI TPS53679"
    chip.poke(0x00, b"\x00")
    chip.poke(0x20, b"\x13")  # exponent -13
    # LTC3880's data sheet: 4C00h is 2.375 V; 9807h is 854e-6; E367h is 54.4375
    for register, data in (
        (0x8B, "004c"), (0x88, "67e3"), (0x8C, "0798"), (0x8D, "2de0"), (0x96, "00f8"),
        (0x79, "4008"),
    ):  # fmt: skip
        chip.poke(register, bytes.fromhex(data))
    readings = chip.run(driver.read())
    assert readings == {
        "vout_mv": 2375,
        "vin_mv": 54_438,
        "iout_ma": 1,
        "temp_mdegc": 2_813,  # 45 * 2**-4
        "pout_mw": 0,
        "status": 0x0840,
    }
    assert status_words(readings["status"]) == ("power_good_negated", "off")
    vid = PmbusVrm(chip.at, page=0)
    chip.poke(0x20, b"\x24")  # VID, table 4: VR13, 10 mV from 0.5 V
    chip.poke(0x8B, b"\x29\x00")
    assert chip.run(vid.read())["vout_mv"] == 900
    chip.poke(0x20, b"\x40")  # direct: not of this driver
    with pytest.raises(BadAnswer, match="ULINEAR16"):
        chip.run(PmbusVrm(chip.at, page=0).read())
    chip.poke(0x98, b"\xff")
    with pytest.raises(WrongPart):
        chip.run(driver.identify())


def emc2305(chip: Chip) -> None:
    driver = Emc2305(chip.at, fans=(0, 4))
    chip.poke(0xFD, b"\x34")
    chip.poke(0xFE, b"\x5d")
    assert chip.run(driver.identify()) == "EMC2305"
    # DS20006532A, equation 4-3 with RNG 01 (2): 3,932,160 * 2 / 1000 counts
    chip.poke(0x32, b"\x2b")
    chip.poke(0x3E, bytes([1000 >> 5]))
    chip.poke(0x3F, bytes([(1000 & 0x1F) << 3]))
    chip.poke(0x30, b"\x80")
    chip.poke(0x72, b"\x0b")
    chip.poke(0x7E, b"\xff")
    chip.poke(0x7F, b"\xf8")
    chip.poke(0x70, b"\xff")
    chip.poke(0x25, b"\x10")
    assert chip.run(driver.read()) == {
        "fan0_rpm": 7864,
        "fan0_drive": 128,
        "fan4_rpm": 0,
        "fan4_drive": 255,
        "stalled": 0x10,
    }
    chip.run(driver.set_drive(0, 200))
    assert chip.run(driver.at.read_byte(0x30)) == 200
    chip.poke(0xFD, b"\x35")  # an EMC2303
    with pytest.raises(WrongPart, match="0x35"):
        chip.run(driver.identify())


def max31790(chip: Chip) -> None:
    driver = Max31790(chip.at, fans=(1,))
    chip.poke(0x00, b"\x20")
    chip.poke(0x11, b"\x00")
    assert chip.run(driver.identify()) == "MAX31790"
    # data sheet: 60 * SR * 8192 / (NP * count); SR 4 (bits 010), two pulses, 200 counts
    chip.poke(0x09, b"\x4c")
    chip.word(0x1A, 200 << 5)
    chip.word(0x42, 0xFF80)
    assert chip.run(driver.read()) == {"fan1_rpm": 4915, "fan1_drive": 255, "stalled": 0}
    chip.word(0x1A, 0xFFE0)
    chip.poke(0x11, b"\x02")
    assert chip.run(driver.read()) == {"fan1_rpm": 0, "fan1_drive": 255, "stalled": 2}
    chip.run(driver.set_drive(1, 0))
    assert chip.run(driver.read())["fan1_drive"] == 0


def pca9555(chip: Chip) -> None:
    driver = Pca9555(chip.at)
    for register, value in ((0, 0x34), (1, 0x12), (2, 0xFF), (3, 0xFF), (6, 0xFF), (7, 0xFF)):
        chip.poke(register, bytes([value]))
    assert chip.run(driver.identify()) == "PCA9555"
    want = {"inputs": 0x1234, "outputs": 0xFFFF, "directions": 0xFFFF}
    assert chip.run(driver.read()) == want
    assert [chip.run(driver.line(bit)) for bit in (2, 3, 9, 10)] == [1, 0, 1, 0]
    chip.run(driver.set_line(11, 0))
    after = chip.run(driver.read())
    assert (after["outputs"], after["directions"]) == (0xF7FF, 0xF7FF)


def nvme_basic(chip: Chip) -> None:
    driver = NvmeBasic(chip.at)
    chip.poke(0x08, bytes.fromhex("8086") + b"PHFT0123456789".ljust(20), block=True)
    assert chip.run(driver.identify()) == "NVMe 8086 PHFT0123456789"
    chip.poke(0x00, bytes.fromhex("bfffc50000"), block=True)  # five bytes
    with pytest.raises(BadAnswer, match="5 bytes, want 6"):
        chip.run(driver.read())
    chip.poke(0x00, bytes.fromhex("bfff1e010000"), block=True)  # the public vector
    want = {
        "temp_mdegc": 30_000, "life_used_percent": 1, "smart_warnings": 0, "ready": 1,
        "functional": 1,
    }  # fmt: skip
    assert chip.run(driver.read()) == want
    chip.poke(0x00, bytes.fromhex("7ffd80640000"), block=True)
    assert chip.run(driver.read()) == want | {
        "temp_mdegc": None, "life_used_percent": 100, "smart_warnings": 2, "ready": 0,
    }  # fmt: skip


def eeprom(chip: Chip) -> None:
    driver = Eeprom(chip.at, size_bytes=256, capabilities=chip.capabilities)
    for offset, byte in enumerate(b"\x12\x34\x56"):
        chip.poke(0x80 + offset, bytes([byte]))
    assert chip.run(driver.read(0x80, 3)) == b"\x12\x34\x56"
    with pytest.raises(Refused, match="bytes 250 to 260"):
        chip.run(driver.read(250, 10))
    fru = Fru(
        board=BoardInfo(
            mfg_minutes=15_000_000,
            manufacturer=FruField.of("Example Works"),
            product_name=FruField.of("PERIPHERAL CARD", packed=True),
            serial_number=FruField.of("B-0042"),
            part_number=FruField.of("PU-16-A"),
        )
    )
    chip.run(write_fru(driver, fru))
    assert chip.run(read_fru(driver)) == fru
    chip.poke(0x20, b"\x00")  # a byte of the board area rots
    with pytest.raises(BadAnswer, match="board area: checksum"):
        chip.run(read_fru(driver))
    for offset in range(8):
        chip.poke(offset, b"\xff")
    with pytest.raises(BadAnswer, match="never written"):
        chip.run(read_fru(driver))


CHECKS: Mapping[str, Callable[[Chip], None]] = {
    check.__name__: check
    for check in (
        tmp75, tmp1075, tmp464, ina226, pmbus, emc2305, max31790, pca9555, nvme_basic, eeprom,
    )
}  # fmt: skip
ADDRESSES: Mapping[str, int] = {
    "tmp75": 0x48, "tmp1075": 0x49, "tmp464": 0x4A, "ina226": 0x40, "pmbus": 0x58,
    "emc2305": 0x4D, "max31790": 0x20, "pca9555": 0x21, "nvme_basic": 0x6A, "eeprom": 0x50,
}  # fmt: skip
