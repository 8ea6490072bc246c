"""The SMBus of a simulated card: a model of every part that its board has, at values which are well
within its limits and move a little, as those of a machine that works do."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from firmware.board_hardware import Device, Hardware, Mux, Place
from hal.mock.kernel import VirtualKernel
from hal.mock.node import Node
from hal.mock.smbus import MockSmbusSegment
from hal.mock.smbus_build import model_of
from hal.mock.smbus_bus import MockSmbusBus
from hal.mock.smbus_fans import Emc2305, Max31790
from hal.mock.smbus_model import Model, RegisterModel
from hal.mock.smbus_parts import Eeprom, NvmeDrive
from hal.mock.smbus_pmbus import PmbusVrm
from hal.mock.smbus_sensors import Ina226, Tmp75, Tmp464
from hal.smbus_ports import SmbusSegment
from protocol.fru import BoardInfo, Fru, FruField

SECOND: Final = 1_000_000_000
BELOW_MDEGC: Final = 15_000  # a temperature below its limit
MOVES: Final = (0, 1, 2, 3, 2, 1)  # steps of what moves, one a second
FRU: Final = Fru(board=BoardInfo(manufacturer=FruField.of("Example Works"))).to_bytes()


class SimSmbus:
    """Buses by their spec strings, models by the board's names of the parts."""

    def __init__(
        self, kernel: VirtualKernel, hardware: Hardware, slot_devices: Sequence[Device] = ()
    ) -> None:
        self._kernel = kernel
        self.buses: dict[str, MockSmbusBus] = {}
        self._opened: dict[str, list[MockSmbusSegment]] = {}  # by bus, of all daemons so far
        self.models: dict[str, Model] = {}
        self.devices: tuple[Device, ...] = (*hardware.devices, *slot_devices)
        self.worn: set[str] = set()  # fans that turn too slowly (fault E4)
        by_segment: dict[str, MockSmbusBus] = {}
        for segment in hardware.segments:
            bus = MockSmbusBus(kernel, segment.id, clock_khz=segment.clock_khz)
            self.buses[segment.bus] = by_segment[segment.id] = bus
        self.bus_of = by_segment
        placed: dict[Place, Model] = {}
        parts: list[Mux | Device] = [*hardware.muxes, *self.devices]
        for part in parts:
            place = part.place
            if place not in placed:  # several channels of one chip are one chip
                model = placed[place] = model_of(part.part, place.address)
                by_segment[place.segment].attach(model, place.muxes)
                self._enliven(model)
            self.models[part.id] = placed[place]
        for device in self.devices:
            make_good(device, self.models[device.id])

    def open(self, node: Node, text: str) -> SmbusSegment:
        """As `Registry.open_smbus` of that node."""
        segment = MockSmbusSegment(node, self.buses[text])
        self._opened.setdefault(self.buses[text].name, []).append(segment)
        return segment

    def counted(self, bus: MockSmbusBus, *names: str) -> int:
        """What the firmware's own engines have counted of these on that bus, ever."""
        segments = self._opened.get(bus.name, ())
        return sum(segment.counters[name] for segment in segments for name in names)

    def _enliven(self, model: Model) -> None:
        if isinstance(model, Eeprom):
            model.data[: len(FRU)] = FRU
        if not isinstance(model, RegisterModel):
            return
        for register in model.registers.values():
            if register.refresh is not None:
                register.refresh = partial(self._move, model, register.refresh)

    def _move(self, model: RegisterModel, refresh: Callable[[], None]) -> None:
        """A little up and down with time, each model from the values that were set."""
        step = MOVES[self._kernel.now_ns // SECOND % len(MOVES)]
        changed = _moved(model, step)
        before = {name: getattr(model, name) for name in changed}
        for name, value in changed.items():
            setattr(model, name, value)
        try:
            refresh()
        finally:
            for name, value in before.items():
                setattr(model, name, value)


def _moved(model: RegisterModel, step: int) -> Mapping[str, Any]:
    match model:
        case Tmp75():
            return {"temp_mdegc": model.temp_mdegc + 63 * step}
        case Tmp464():
            return {"temps_mdegc": [value + 63 * step for value in model.temps_mdegc]}
        case Ina226():
            return {"current_ma": model.current_ma * (100 + step) // 100}
        case PmbusVrm():
            return {"vin_mv": model.vin_mv + 20 * step}
        case Emc2305() | Max31790():
            return {"full_rpm": [value * (100 + step) // 100 for value in model.full_rpm]}
        case NvmeDrive() if model.temp_degc is not None:
            return {"temp_degc": model.temp_degc + step}
        case _:
            return {}


def make_good(device: Device, model: Model) -> None:
    """Values within the board's limits."""
    numbers = device.numbers
    match model:
        case Tmp464():
            model.temps_mdegc[numbers["channel"]] = numbers["temp_high_mdegc"] - BELOW_MDEGC
        case Tmp75():
            model.temp_mdegc = numbers["temp_high_mdegc"] - BELOW_MDEGC
        case PmbusVrm():
            for rail in model.rails:
                rail.vout_mv = numbers["nominal_mv"]
                rail.iout_ma = numbers["iout_high_ma"] // 2
        case Ina226():
            model.shunt_uohm = numbers["shunt_uohm"]
            model.bus_mv = (numbers["bus_low_mv"] + numbers["bus_high_mv"]) // 2
            model.current_ma = numbers["power_high_mw"] // 2 * 1000 // model.bus_mv
        case Emc2305() | Max31790():
            rpm = (numbers["rpm_low"] + numbers["rpm_high"]) // 2
            model.full_rpm[numbers["channel"]] = rpm
        case _:
            pass
