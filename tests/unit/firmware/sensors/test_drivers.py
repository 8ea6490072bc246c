"""Every driver on its register model: the checks that it also passes on i2c-stub, and what only a
model shows, because it behaves as the part does."""

from collections.abc import Callable
from typing import Any

import pytest

from firmware.sensors.eeprom import Eeprom
from firmware.sensors.emc2305 import Emc2305
from firmware.sensors.ina226 import Ina226
from firmware.sensors.max31790 import Max31790
from firmware.sensors.nvme_basic import NvmeBasic
from firmware.sensors.pca9555 import Pca9555
from firmware.sensors.pmbus import PmbusVrm as PmbusDriver
from firmware.sensors.steps import At, Steps, run_steps, with_pec
from firmware.sensors.tmp75 import Tmp75, Tmp1075
from firmware.sensors.tmp464 import Tmp464
from hal.errors import DeadlinePassed, HalError
from hal.mock import smbus_fans, smbus_parts, smbus_pmbus, smbus_sensors
from hal.mock.smbus import MockSmbusSegment
from hal.mock.smbus_bus import ALL_FUNCTIONS, MockSmbusBus
from hal.mock.smbus_model import Model, Register, RegisterModel
from hal.smbus_ports import SmbusFunctions
from tests.contract.sensor_checks import ADDRESSES, CHECKS, Chip
from tests.contract.worlds import VirtualWorld

MODELS: dict[str, Callable[[int], Model]] = {
    "tmp75": smbus_sensors.Tmp75,
    "tmp1075": smbus_sensors.Tmp1075,
    "tmp464": smbus_sensors.Tmp464,
    "ina226": smbus_sensors.Ina226,
    "pmbus": smbus_pmbus.PmbusVrm,
    "emc2305": smbus_fans.Emc2305,
    "max31790": smbus_fans.Max31790,
    "pca9555": smbus_parts.Pca9555,
    "nvme_basic": smbus_parts.NvmeDrive,
    "eeprom": smbus_parts.Eeprom,
}
SMBUS_ONLY = ALL_FUNCTIONS & ~SmbusFunctions.I2C
BYTES_ONLY = SMBUS_ONLY & ~(SmbusFunctions.READ_I2C_BLOCK | SmbusFunctions.WRITE_I2C_BLOCK)


class Bench:
    """One model on a bus of its own."""

    def __init__(self, model: Model, functions: SmbusFunctions = ALL_FUNCTIONS) -> None:
        self.world = VirtualWorld()
        node = self.world.reactor.clock.node  # type: ignore[attr-defined]
        self.bus = MockSmbusBus(self.world.kernel, "bench", functions=functions)
        self.bus.attach(model)
        self.segment = MockSmbusSegment(node, self.bus)
        self.at = with_pec(At(address=model.address), self.segment.capabilities)
        if not isinstance(model, RegisterModel) or not model.pec:
            self.at = At(address=model.address)

    def run(self, steps: Steps[Any], limit_s: float = 20) -> Any:
        found: list[Any] = []
        now_ns = self.world.reactor.now_ns()
        deadline_ns = now_ns + int(limit_s * 1e9)
        run_steps(self.segment, now_ns, steps, deadline_ns, found.append)
        self.world.run_until(lambda: bool(found), limit_s + 1)
        if isinstance(found[0], HalError):
            raise found[0]
        return found[0]


@pytest.mark.parametrize("functions", [ALL_FUNCTIONS, SMBUS_ONLY, BYTES_ONLY])
@pytest.mark.parametrize("part", CHECKS)
def test_driver_on_its_model(part: str, functions: SmbusFunctions) -> None:
    model = MODELS[part](ADDRESSES[part])
    bench = Bench(model, functions)

    def poke(register: int, data: bytes, *, block: bool = False) -> None:
        if isinstance(model, smbus_parts.Eeprom):
            model.data[register : register + len(data)] = data
            return
        assert isinstance(model, RegisterModel)
        model.frozen = True  # the test is the world here
        if model.registers[register].block == block:
            model.poke(register, data)
        else:
            model.registers[register] = Register(data, block=block)

    CHECKS[part](
        Chip(at=bench.at, capabilities=bench.segment.capabilities, poke=poke, run=bench.run)
    )


# --- what the parts do by themselves ---


def test_a_tmp75_with_nine_bits_gives_half_degrees_until_it_is_configured() -> None:
    model = smbus_sensors.Tmp75(temp_mdegc=25_437)
    bench = Bench(model)
    driver = Tmp75(bench.at)
    assert bench.run(driver.read()) == {"temp_mdegc": 25_000}
    bench.run(driver.configure())
    assert bench.run(driver.read()) == {"temp_mdegc": 25_375}
    model.temp_mdegc = -10_062
    assert bench.run(driver.read()) == {"temp_mdegc": -10_062}


def test_a_tmp75_that_is_shut_down_keeps_its_last_value_and_is_woken() -> None:
    model = smbus_sensors.Tmp75(temp_mdegc=40_000)
    bench = Bench(model)
    driver = Tmp75(bench.at)
    bench.run(driver.read())
    bench.run(bench.at.write_byte(0x01, 0x61))
    model.temp_mdegc = 60_000
    assert bench.run(driver.read()) == {"temp_mdegc": 40_000}
    bench.run(driver.configure())
    assert bench.run(driver.read()) == {"temp_mdegc": 60_000}


def test_a_tmp1075_is_woken_with_its_reserved_byte_as_it_was() -> None:
    model = smbus_sensors.Tmp1075()
    bench = Bench(model)
    bench.run(bench.at.write_word(0x01, b"\x01\xff"))
    bench.run(Tmp1075(bench.at).configure())
    assert model.peek(0x01) == b"\x00\xff"


def test_a_tmp464_tells_open_diodes() -> None:
    model = smbus_sensors.Tmp464(temps_mdegc=(30_000, 50_000, 60_000, 70_000, 80_000))
    model.open_diodes = {2, 4}
    bench = Bench(model)
    assert bench.run(Tmp464(bench.at).read()) == {
        "temp_mdegc": 30_000,
        "remote1_mdegc": 50_000,
        "remote2_mdegc": None,
        "remote3_mdegc": 70_000,
        "remote4_mdegc": None,
    }


def test_an_ina226_measures_what_flows() -> None:
    model = smbus_sensors.Ina226(shunt_uohm=1000, bus_mv=12_000, current_ma=8_000)
    bench = Bench(model)
    driver = Ina226(bench.at, shunt_uohm=1000)
    bench.run(driver.configure())
    found = bench.run(driver.read())
    assert found == {"shunt_uv": 8_000, "bus_mv": 12_000, "current_ma": 8_000, "power_mw": 96_000}
    model.current_ma = -2_000
    assert bench.run(driver.read())["current_ma"] == -2_000


def test_a_regulator_is_read_rail_by_rail_though_somebody_else_turns_its_pages() -> None:
    model = smbus_pmbus.PmbusVrm(rails=2)
    model.rails[0].vout_mv, model.rails[1].vout_mv = 900, 1_800
    model.rails[1].status = 0x8020
    bench = Bench(model)
    first, second = PmbusDriver(bench.at, page=0), PmbusDriver(bench.at, page=1)
    for _ in range(2):
        assert bench.run(first.read())["vout_mv"] == 900
        assert bench.run(second.read())["vout_mv"] == 1_800
    assert bench.run(second.read())["status"] == 0x8020
    model.poke(0x00, b"\x00")
    found = bench.run(second.read())
    assert (found["vout_mv"], found["vin_mv"]) == (1_800, 12_000)
    bench.run(second.clear_faults())
    assert bench.run(second.read())["status"] == 0


def test_a_regulator_without_a_reading_gives_none_for_it() -> None:
    model = smbus_pmbus.PmbusVrm()
    model.refused = {smbus_pmbus.READ_POUT}
    bench = Bench(model)
    found = bench.run(PmbusDriver(bench.at, page=None).read())
    assert found["pout_mw"] is None
    assert found["vout_mv"] == 900


@pytest.mark.parametrize(
    ("model", "driver", "name"),
    [
        (smbus_fans.Emc2305(), Emc2305, "fan0"),
        (smbus_fans.Max31790(), Max31790, "fan0"),
    ],
)
def test_a_fan_turns_as_it_is_driven_and_a_stalled_one_is_told(
    model: Any, driver: Any, name: str
) -> None:
    bench = Bench(model)
    fans = driver(bench.at, fans=(0, 1))
    full = bench.run(fans.read())
    assert 11_850 <= full[f"{name}_rpm"] <= 12_150
    bench.run(fans.set_drive(0, 128))
    half = bench.run(fans.read())
    assert 5_900 <= half[f"{name}_rpm"] <= 6_150
    assert (half["fan1_rpm"], half["stalled"]) == (full["fan1_rpm"], 0)
    model.stalled.add(1)
    stalled = bench.run(fans.read())
    assert (stalled["fan1_rpm"], stalled["stalled"]) == (0, 0b10)


def test_a_line_is_set_without_another_level_in_between_and_the_others_stay() -> None:
    model = smbus_parts.Pca9555(inputs=0xA5A5)
    bench = Bench(model)
    driver = Pca9555(bench.at)
    bench.run(driver.set_line(3, 0))
    assert model.pins() == 0xA5A5 & ~8
    assert bench.run(driver.line(3)) == 0
    bench.run(driver.set_line(3, 1))
    assert model.pins() == 0xA5A5 | 8
    writes = [entry for entry in model.journal if len(entry) == 2]
    assert [entry[0] for entry in writes] == [0x02, 0x06, 0x02], "latch first, then direction"


def test_a_drive_too_hot_for_its_byte_and_one_without_data() -> None:
    model = smbus_parts.NvmeDrive(temp_degc=140)
    bench = Bench(model)
    driver = NvmeBasic(bench.at)
    assert bench.run(driver.read())["temp_mdegc"] == 127_000
    model.temp_degc = -80
    assert bench.run(driver.read())["temp_mdegc"] == -60_000
    model.temp_degc = None
    assert bench.run(driver.read())["temp_mdegc"] is None


@pytest.mark.parametrize("functions", [ALL_FUNCTIONS, SMBUS_ONLY, BYTES_ONLY])
@pytest.mark.parametrize(("size_bytes", "page_bytes"), [(256, 8), (8192, 32), (16384, 64)])
def test_an_eeprom_is_written_within_its_pages_and_waits_for_its_write_cycles(
    size_bytes: int, page_bytes: int, functions: SmbusFunctions
) -> None:
    model = smbus_parts.Eeprom(size_bytes=size_bytes, page_bytes=page_bytes)
    bench = Bench(model, functions)
    model.now_ns = lambda: bench.world.kernel.now_ns
    driver = Eeprom(
        bench.at,
        size_bytes=size_bytes,
        capabilities=bench.segment.capabilities,
        page_bytes=page_bytes,
    )
    data = bytes(range(100))
    start = size_bytes - 120
    bench.run(driver.write(start, data))
    assert bytes(model.data[start : start + 100]) == data
    assert bench.run(driver.read(start - 3, 105)) == b"\xff" * 3 + data + b"\xff" * 2


def test_steps_past_their_deadline_are_not_begun() -> None:
    bench = Bench(smbus_sensors.Tmp75())
    found: list[Any] = []
    now_ns = bench.world.reactor.now_ns()
    run_steps(bench.segment, now_ns, Tmp75(bench.at).read(), now_ns, found.append)
    assert isinstance(found[0], DeadlinePassed)
    assert bench.bus.transfers == 0
