"""Which driver a part of the board has, how often it is read, and between which limits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from firmware.board_hardware import Device
from firmware.sensors.emc2305 import Emc2305
from firmware.sensors.ina226 import Ina226
from firmware.sensors.max31790 import Max31790
from firmware.sensors.nvme_basic import NvmeBasic
from firmware.sensors.pca9555 import Pca9555
from firmware.sensors.pmbus import PmbusVrm
from firmware.sensors.steps import At, SensorDriver, with_pec
from firmware.sensors.tmp75 import Tmp75, Tmp1075
from firmware.sensors.tmp464 import Tmp464
from hal.smbus_ports import SmbusCapabilities

PERIOD_MS: Final[Mapping[str, int]] = {  # role -> how often it is read
    "temp": 1_000,
    "vrm": 1_000,
    "power": 1_000,
    "fan": 2_000,
    "gpio": 1_000,
    "nvme": 5_000,  # its own data is up to 5 s old
}
TEMP_BACK_MDEGC: Final = 2_000  # so far below its limit it is good again
PERCENT_BACK: Final = 2  # of any other limit
WITH_CODES: Final = frozenset({"vrm", "nvme"})  # parts that check packet error codes


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A reading that must stay above or below a number of the board's."""

    name: str  # of the board's key: "temp_high_mdegc"
    reading: str
    value: int
    high: bool

    def broken(self, value: int) -> bool:
        return value >= self.value if self.high else value <= self.value

    def mended(self, value: int) -> bool:
        """Good again, with a margin, so that nothing is told back and forth."""
        if self.reading.endswith("_mdegc"):
            margin = TEMP_BACK_MDEGC
        else:
            margin = max(1, self.value * PERCENT_BACK // 100)
        return value <= self.value - margin if self.high else value >= self.value + margin


_LIMITS: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {  # role -> (board's key, reading)
    "temp": (("temp_high_mdegc", "*temp"), ("temp_critical_mdegc", "*temp")),
    "vrm": (
        ("vout_low_mv", "vout_mv"),
        ("vout_high_mv", "vout_mv"),
        ("iout_high_ma", "iout_ma"),
        ("temp_high_mdegc", "temp_mdegc"),
    ),
    "power": (
        ("bus_low_mv", "bus_mv"),
        ("bus_high_mv", "bus_mv"),
        ("power_high_mw", "power_mw"),
    ),
    "fan": (("rpm_low", "*fan"), ("rpm_high", "*fan")),
    "nvme": (("temp_high_mdegc", "temp_mdegc"),),
}


def limits_of(device: Device) -> tuple[Limit, ...]:
    """What the board wants of this part's readings."""
    channel = device.numbers.get("channel", 0)
    names = {
        "*temp": f"remote{channel}_mdegc" if channel else "temp_mdegc",
        "*fan": f"fan{channel}_rpm",
    }
    return tuple(
        Limit(
            name=key,
            reading=names.get(reading, reading),
            value=device.numbers[key],
            high="_low" not in key,
        )
        for key, reading in _LIMITS.get(device.role, ())
        if key in device.numbers
    )


def driver_of(device: Device, capabilities: SmbusCapabilities) -> SensorDriver | None:
    """None for a part that is not read again and again (an EEPROM)."""
    at = At(address=device.place.address, mux=device.place.muxes)
    if device.role in WITH_CODES:
        at = with_pec(at, capabilities)
    channel = device.numbers.get("channel", 0)
    make: Mapping[str, Callable[[], SensorDriver]] = {
        "tmp75": lambda: Tmp75(at),
        "tmp1075": lambda: Tmp1075(at),
        "tmp464": lambda: Tmp464(at, channels=(channel,)),
        "ina226": lambda: Ina226(at, shunt_uohm=device.numbers["shunt_uohm"]),
        "pmbus": lambda: PmbusVrm(at, page=None),
        "tps53679": lambda: PmbusVrm(at, page=0),
        "xdpe132g5c": lambda: PmbusVrm(at, page=0),
        "emc2305": lambda: Emc2305(at, fans=(channel,)),
        "max31790": lambda: Max31790(at, fans=(channel,)),
        "pca9555": lambda: Pca9555(at),
        "nvme_basic": lambda: NvmeBasic(at),
    }
    found = make.get(device.part)
    return found() if found is not None else None
