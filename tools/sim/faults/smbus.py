"""B1 to B8: SMBus. They fit cards that have one (rev_a); evidence is what the firmware's engine of
that bus has counted, or what the card said of its muxes."""

from collections.abc import Callable
from typing import Final

from firmware.board_hardware import Device
from firmware.board_types import Board
from hal.errors import Absent, HalError
from hal.mock.smbus_bus import CLOCKS_TO_FREE, MockSmbusBus, Mux
from hal.mock.smbus_model import Model, RegisterModel
from hal.mock.smbus_parts import NvmeDrive
from hal.smbus_ports import ArbitrationLost, DataNack, PecWrong, WrongCount
from tools.sim.faults.evidence import events_since
from tools.sim.faults.types import MS, SECOND, Fault, Injection, Site, injection, span_ns
from tools.sim.smbus import SimSmbus

NO_SMBUS: Final = "this board has no SMBus; rev_a has"
HELD: Final = "bus_held"  # hal.smbus_engine counts these two by words
REPEATED: Final = "repeated"
STRETCH_NS: Final = 30 * MS  # more than the 25 ms that SMBus allows


def has_smbus(board: Board) -> bool:
    return bool(board.hardware.segments)


def _bus(site: Site) -> MockSmbusBus | None:
    smbus = site.world.smbus
    return None if smbus is None else site.rng.choice(list(smbus.buses.values()))


def _part(site: Site, kind: type[Model]) -> tuple[MockSmbusBus, Model] | None:
    """One that is read again and again, of that kind, with its bus."""
    smbus = site.world.smbus
    if smbus is None:
        return None
    read = [
        device
        for device in smbus.devices
        if device.role != "fru" and isinstance(smbus.models[device.id], kind)
    ]
    cards = [device for device in read if _of_the_card(site, smbus, device.id)]
    if not cards:
        return None
    device = site.rng.choice(cards)
    return smbus.bus_of[device.place.segment], smbus.models[device.id]


def _of_the_card(site: Site, smbus: SimSmbus, name: str) -> bool:
    """Parts of a module are not read while it is off."""
    hardware = site.world.board.hardware
    return name in {device.id for device in hardware.devices}


def _counts(
    site: Site, *errors: type[HalError] | str, bus: MockSmbusBus | None = None
) -> Callable[[], bool]:
    """Has the engine of that bus, or of any, counted one of these since now?"""
    smbus = site.world.smbus
    assert smbus is not None
    buses = list(smbus.buses.values()) if bus is None else [bus]
    names = [error if isinstance(error, str) else error.__name__ for error in errors]

    def count() -> int:
        return sum(smbus.counted(one, *names) for one in buses)

    before = count()
    return lambda: count() > before


def _held_sda(site: Site) -> Injection | None:
    bus = _bus(site)
    if bus is None:
        return None
    seen = _counts(site, HELD, bus=bus)
    clocks = site.rng.choice((1, CLOCKS_TO_FREE, 3 * CLOCKS_TO_FREE, -1))
    bus.hold_sda(clocks)

    def heal() -> None:
        bus.sda_clocks = None

    text = f"{bus.name}: SDA is held low" + (f" for {clocks} clocks" if clocks > 0 else "")
    lasts_ns = span_ns(site, 2.0, 20.0)
    return injection(site, "B1", text, seen, heal=heal, lasts_ns=lasts_ns)


def _held_scl(site: Site) -> Injection | None:
    bus = _bus(site)
    if bus is None:
        return None
    seen = _counts(site, HELD, bus=bus)
    bus.hold_scl()

    def heal() -> None:
        bus.scl_held = False

    return injection(
        site,
        "B2",
        f"{bus.name}: SCL is held low",
        seen,
        heal=heal,
        lasts_ns=span_ns(site, 2.0, 20.0),
    )


def _stretched(site: Site) -> Injection | None:
    found = _part(site, RegisterModel)
    if found is None:
        return None
    bus, model = found
    seen = _counts(site, HELD, bus=bus)
    bus.stretch_ns[model.address] = STRETCH_NS

    def heal() -> None:
        bus.stretch_ns.pop(model.address, None)

    return injection(
        site,
        "B3",
        f"{bus.name}: {model.address:#04x} stretches the clock for {STRETCH_NS // MS} ms",
        seen,
        heal=heal,
        lasts_ns=span_ns(site, 3.0, 10.0),
    )


def _nacked(site: Site) -> Injection | None:
    found = _part(site, RegisterModel)
    if found is None:
        return None
    bus, model = found
    seen = _counts(site, Absent, bus=bus)
    count = site.rng.choice((1, 2, 10, 1000))
    bus.nack_addresses[model.address] = count

    def heal() -> None:
        bus.nack_addresses.pop(model.address, None)

    return injection(
        site,
        "B4",
        f"{bus.name}: {model.address:#04x} is not acknowledged {count} times",
        seen,
        heal=heal,
        lasts_ns=span_ns(site, 3.0, 20.0),
    )


def _refused(site: Site) -> Injection | None:
    found = _part(site, RegisterModel)
    if found is None:
        return None
    bus, model = found
    assert isinstance(model, RegisterModel)
    command, seen = model.pointer, _counts(site, DataNack, bus=bus)
    model.refused.add(command)
    return injection(
        site,
        "B5",
        f"{bus.name}: {model.address:#04x} refuses command {command:#04x}",
        seen,
        heal=lambda: model.refused.discard(command),
        lasts_ns=span_ns(site, 11.0, 20.0),
    )


def _wrong_pec(site: Site) -> Injection | None:
    smbus = site.world.smbus
    if smbus is None:
        return None
    names = [
        device.id
        for device in site.world.board.hardware.devices
        if getattr(smbus.models[device.id], "pec", False)
    ]
    if not names:
        return None
    model = smbus.models[site.rng.choice(names)]
    assert isinstance(model, RegisterModel)
    seen = _counts(site, PecWrong, REPEATED)
    model.wrong_pec = site.rng.choice((1, 2, 3, 50))
    return injection(
        site,
        "B6",
        f"{model.address:#04x}: {model.wrong_pec} answers with a wrong PEC",
        seen,
        heal=lambda: setattr(model, "wrong_pec", 0),
        lasts_ns=span_ns(site, 3.0, 10.0),
    )


def _lost_arbitration(site: Site) -> Injection | None:
    bus = _bus(site)
    if bus is None:
        return None
    seen = _counts(site, ArbitrationLost, REPEATED, bus=bus)
    count = bus.lose_arbitration = site.rng.choice((1, 2, 3, 10, 100))

    def heal() -> None:
        bus.lose_arbitration = 0

    return injection(
        site,
        "B7",
        f"{bus.name}: arbitration is lost {count} times",
        seen,
        heal=heal,
        lasts_ns=span_ns(site, 3.0, 10.0),
    )


def _muxes_of(device: Device) -> list[tuple[str, int]]:
    return [(device.place.segment, address) for address, _channel in device.place.muxes]


def _count_or_mux(site: Site) -> Injection | None:
    smbus = site.world.smbus
    if smbus is None:
        return None
    drives = [m for m in smbus.models.values() if isinstance(m, NvmeDrive)]
    used = {place for device in smbus.devices for place in _muxes_of(device)}
    muxes = [
        (smbus.models[mux.id], mux.place.segment)
        for mux in site.world.board.hardware.muxes
        if (mux.place.segment, mux.place.address) in used  # else nobody would ever notice
    ]
    if drives and (not muxes or site.rng.random() < 0.5):
        drive = site.rng.choice(drives)
        seen = _counts(site, WrongCount)
        drive.wrong_count = site.rng.randint(1, 4)
        return injection(
            site,
            "B8",
            f"a drive at {drive.address:#04x} gives {drive.wrong_count} wrong byte counts",
            seen,
            heal=lambda: setattr(drive, "wrong_count", 0),
            lasts_ns=12 * SECOND,
        )
    if not muxes:
        return None
    mux, segment = site.rng.choice(muxes)
    assert isinstance(mux, Mux)
    later = events_since(site.world)
    mux.control, mux.stuck = 1 << site.rng.randrange(4), True

    def heal() -> None:
        mux.stuck = False

    return injection(
        site,
        "B8",
        f"{segment}: mux {mux.address:#04x} keeps {mux.control:#04x} selected",
        lambda: bool(later("bus.mux")),
        heal=heal,
        lasts_ns=span_ns(site, 7.0, 20.0),
    )


SMBUS_FAULTS: Final = tuple(
    Fault(id=name, text=text, inject=inject, fits=has_smbus, fits_not=NO_SMBUS)
    for name, text, inject in (
        ("B1", "SDA is stuck low", _held_sda),
        ("B2", "SCL is stuck low", _held_scl),
        ("B3", "the clock is stretched for more than 25 ms", _stretched),
        ("B4", "an address is not acknowledged", _nacked),
        ("B5", "data is not acknowledged in the middle of a block", _refused),
        ("B6", "a wrong PEC", _wrong_pec),
        ("B7", "arbitration is lost", _lost_arbitration),
        ("B8", "a wrong byte count, or a mux channel left selected", _count_or_mux),
    )
)
