"""What a card is built of, as its board file says: PCIe ports, SMBus segments, and what is on them.

    [pcie]              the switch that the slots hang on
    [[smbus]]           a segment: the kernel's bus, its clock
    [[mux]]             a PCA954x on a segment, or behind another mux
    [[device]]          VRMs, sensors, fans, EEPROMs, port expanders; also below a slot
    slot.pcie           the slot's port, and the link that it must come up with
    slot.power_step     the slot's power sequence: lines to set, lines to wait for

A place on SMBus is `SEGMENT[/MUX.CHANNEL...]/0xADDRESS`. Addresses are 7 bits; 0x00 to 0x07 and
0x78 to 0x7f are reserved (I2C-bus specification UM10204, 3.1.12). Two parts collide where they
have one address and are reached at the same time: what is in front of a mux is seen behind it too.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from firmware.fields import FieldError, Fields, nearest, shown
from firmware.fields import Path as KeyPath
from firmware.workload import NAME, NAME_WANT

SPEEDS_MTPS: Final = (2500, 5000, 8000, 16_000, 32_000)  # PCIe Base 5.0, 7.5.3.18: 1 to 5
WIDTHS: Final = (1, 2, 4, 8, 16)
PCI_ADDRESS: Final = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]")
PCI_WANT: Final = "a PCI address like 0000:02:03.0"
MAX_SEGMENTS: Final = 16
MAX_MUXES: Final = 64
MAX_DEVICES: Final = 256
MAX_SLOT_DEVICES: Final = 16
MAX_STEPS: Final = 16
MAX_LINES: Final = 16  # of one expander: two ports of eight
MUX_CHANNELS: Final = {"pca9546": 4, "pca9548": 8}
PARTS: Final = {  # role -> parts that `firmware.sensors` has drivers for; VRMs are all PMBus
    "vrm": ("pmbus", "tps53679", "xdpe132g5c"),
    "temp": ("tmp75", "tmp1075", "tmp464"),
    "power": ("ina226",),
    "fan": ("emc2305", "max31790"),
    "fru": ("24c02", "24c64", "24c128"),
    "gpio": ("pca9555",),
    "nvme": ("nvme_basic",),
}
NUMBERS: Final[Mapping[str, Mapping[str, tuple[int, int]]]] = {  # role -> key -> (least, most)
    "vrm": {
        "nominal_mv": (300, 60_000),
        "vout_low_mv": (200, 60_000),
        "vout_high_mv": (300, 70_000),
        "iout_high_ma": (100, 1_000_000),
        "temp_high_mdegc": (0, 150_000),
    },
    "temp": {
        "channel": (0, 4),
        "temp_high_mdegc": (0, 150_000),
        "temp_critical_mdegc": (0, 150_000),
    },
    "power": {
        "shunt_uohm": (10, 1_000_000),
        "bus_low_mv": (0, 36_000),  # INA226, 7.3: 36 V at most
        "bus_high_mv": (1, 36_000),
        "power_high_mw": (1, 2_000_000),
    },
    "fan": {"channel": (0, 5), "rpm_low": (100, 40_000), "rpm_high": (100, 40_000)},
    "fru": {"size_bytes": (256, 65_536)},
    "gpio": {},
    "nvme": {"temp_high_mdegc": (0, 127_000)},
}
OPTIONAL: Final = {"channel": 0}
ORDERED: Final = (  # the first must be less than the second
    ("vout_low_mv", "nominal_mv"),
    ("nominal_mv", "vout_high_mv"),
    ("temp_high_mdegc", "temp_critical_mdegc"),
    ("bus_low_mv", "bus_high_mv"),
    ("rpm_low", "rpm_high"),
)
_ID: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")
_ID_WANT: Final = "a name like mod0 ([a-z0-9_], at most 32)"
_BUS: Final = re.compile(r"(i2c:[0-9]{1,3}|mock:[a-z0-9_-]{1,32})")
_ADDRESS: Final = re.compile(r"0x[0-9a-f]{2}")
_LINE: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One SMBus. `bus` is the spec string of its port."""

    id: str
    bus: str
    clock_khz: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a part is: on which segment, through which muxes (address, channel), at what."""

    segment: str
    muxes: tuple[tuple[int, int], ...]
    address: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mux:
    id: str
    part: str
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A part on SMBus. `numbers` holds its limits and settings, units in the names."""

    id: str
    role: str
    part: str
    place: Place
    rail: str = ""
    numbers: Mapping[str, int] = field(default_factory=dict)
    lines: Mapping[str, int] = field(default_factory=dict)  # of an expander: name -> bit


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """The PCIe switch between the card's processor and its slots."""

    upstream: str
    speed_mtps: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotPcie:
    """A slot's downstream port, and the link that a module must train to."""

    port: str
    speed_mtps: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerStep:
    """Set a line, or wait for it: at most `within_ms`, which for a set is the pause after it."""

    device: str
    line: str
    value: int
    wait: bool
    within_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """All of it but the slots' own parts."""

    switch: Switch | None = None
    segments: tuple[Segment, ...] = ()
    muxes: tuple[Mux, ...] = ()
    devices: tuple[Device, ...] = ()


def read_hardware(fields: Fields) -> Hardware:
    """The tables `pcie`, `smbus`, `mux` and `device` of a board. Raises FieldError."""
    segments = fields.objects("smbus", _segment, max_items=MAX_SEGMENTS)
    _check_ids([(("smbus", n, "id"), item.id) for n, item in enumerate(segments)])
    buses = [(("smbus", n, "bus"), item.bus) for n, item in enumerate(segments)]
    _check_ids(buses, what="a bus")
    known = Hardware(segments=segments)
    muxes: list[Mux] = []
    for index, raw in enumerate(fields.items("mux", max_items=MAX_MUXES)):
        inner = Fields(raw, ("mux", index))
        muxes.append(_mux(inner, known))
        inner.done()
        _check_ids([(("mux", n, "id"), item.id) for n, item in enumerate(muxes)])
        known = Hardware(segments=segments, muxes=tuple(muxes))  # those before it only: no circles
    devices = read_devices(fields, "device", known, max_items=MAX_DEVICES)
    switch = fields.object_or_none("pcie", _switch)
    return Hardware(switch=switch, segments=segments, muxes=known.muxes, devices=devices)


def read_devices(
    fields: Fields, key: str, known: Hardware, *, max_items: int
) -> tuple[Device, ...]:
    """A list of parts, on segments and behind muxes that are known."""
    return fields.objects(key, lambda inner: _device(inner, known), max_items=max_items)


def read_slot_pcie(fields: Fields) -> SlotPcie:
    return SlotPcie(
        port=fields.text("port", pattern=PCI_ADDRESS, want=PCI_WANT),
        speed_mtps=_one_of(fields, "speed_mtps", SPEEDS_MTPS),
        width=_one_of(fields, "width", WIDTHS),
    )


def read_steps(
    fields: Fields, key: str, lines: Mapping[str, Mapping[str, int]]
) -> tuple[PowerStep, ...]:
    """A power sequence; `lines` are those of each expander."""
    return fields.objects(key, lambda inner: _step(inner, lines), max_items=MAX_STEPS)


def lines_of(devices: Sequence[Device]) -> dict[str, Mapping[str, int]]:
    """Expander -> its lines."""
    return {device.id: device.lines for device in devices if device.role == "gpio"}


def check_places(parts: Sequence[tuple[KeyPath, Device | Mux]]) -> None:
    """Raise FieldError for an id that is used twice, or two parts that answer at once."""
    _check_ids([((*path, "id"), part.id) for path, part in parts])
    seen: dict[tuple[str, int], list[tuple[KeyPath, Device | Mux]]] = {}
    for path, part in parts:
        place = part.place
        for other_path, other in seen.setdefault((place.segment, place.address), []):
            shorter = min(len(place.muxes), len(other.place.muxes))
            if place.muxes[:shorter] != other.place.muxes[:shorter]:
                continue  # on two channels: never both at once
            if _shares(part, other):
                continue
            want = f"an address that nobody else answers there: {other.id} does"
            got = f"{place.address:#04x}, as in {_words(other_path)}"
            raise FieldError((*path, "at"), want, got)
        seen[place.segment, place.address].append((path, part))


def _shares(one: Device | Mux, other: Device | Mux) -> bool:
    """Several channels of one chip are several devices to us: fans, remote diodes."""
    if not isinstance(one, Device) or not isinstance(other, Device):
        return False
    if one.part != other.part or one.place != other.place or "channel" not in one.numbers:
        return False
    return one.numbers["channel"] != other.numbers["channel"]


def _segment(fields: Fields) -> Segment:
    return Segment(
        id=fields.text("id", pattern=_ID, want=_ID_WANT),
        bus=fields.text("bus", pattern=_BUS, want="i2c:N, the kernel's number of the adapter"),
        clock_khz=_one_of(fields, "clock_khz", (10, 100, 400, 1000)),
    )


def _mux(fields: Fields, known: Hardware) -> Mux:
    return Mux(
        id=fields.text("id", pattern=_ID, want=_ID_WANT),
        part=fields.choice("part", tuple(MUX_CHANNELS)),
        place=read_place(fields, "at", known),
    )


def _switch(fields: Fields) -> Switch:
    return Switch(
        upstream=fields.text("upstream", pattern=PCI_ADDRESS, want=PCI_WANT),
        speed_mtps=_one_of(fields, "speed_mtps", SPEEDS_MTPS),
        width=_one_of(fields, "width", WIDTHS),
    )


def _device(fields: Fields, known: Hardware) -> Device:
    role = fields.choice("role", tuple(PARTS))
    numbers = {}
    for key, (low, high) in NUMBERS[role].items():
        if key in OPTIONAL:
            numbers[key] = fields.integer(key, OPTIONAL[key], low=low, high=high)
        else:
            numbers[key] = fields.integer(key, low=low, high=high)
    for less, more in ORDERED:
        if less in numbers and more in numbers and numbers[less] >= numbers[more]:
            raise fields.fail(less, f"less than {more} = {numbers[more]}", f"{numbers[less]}")
    return Device(
        id=fields.text("id", pattern=_ID, want=_ID_WANT),
        role=role,
        part=fields.choice("part", PARTS[role]),
        place=read_place(fields, "at", known),
        rail=fields.text("rail", pattern=NAME, want=NAME_WANT) if role == "vrm" else "",
        numbers=numbers,
        lines=fields.object("lines", _lines) if role == "gpio" else {},
    )


def _lines(fields: Fields) -> dict[str, int]:
    names = list(fields.rest())
    found: dict[str, int] = {}
    for name in names:
        if _LINE.fullmatch(name) is None:
            raise fields.fail(name, "a name of a line, [a-z0-9_]", shown(name))
        found[name] = fields.integer(name, high=MAX_LINES - 1)
        doubles = [other for other, bit in found.items() if bit == found[name] and other != name]
        if doubles:
            raise fields.fail(name, "a bit of its own", f"{found[name]}, as {doubles[0]}")
    return found


def read_place(fields: Fields, key: str, known: Hardware) -> Place:
    """`SEGMENT[/MUX.CHANNEL...]/0xADDRESS`, every name known. Raises FieldError."""
    text = fields.text(key, max_bytes=128)
    place = place_of(text, known)
    if isinstance(place, str):
        raise fields.fail(key, place, shown(text))
    return place


def place_of(text: str, known: Hardware) -> Place | str:
    """A place, or what was wanted instead."""
    names = [segment.id for segment in known.segments]
    segment, *steps = text.split("/")
    if segment not in names:
        return f"a place on one of the segments {', '.join(names)}{nearest(segment, names)}"
    if not steps or _ADDRESS.fullmatch(steps[-1]) is None:
        return "SEGMENT[/MUX.CHANNEL...]/0xADDRESS"
    address = int(steps[-1], 16)
    if not 0x08 <= address <= 0x77:
        return "an address in 0x08..0x77 (the others are reserved)"
    muxes: list[tuple[int, int]] = []
    for step in steps[:-1]:
        name, _, channel = step.partition(".")
        before = Place(segment=segment, muxes=tuple(muxes), address=0)
        mux = next((mux for mux in known.muxes if mux.id == name), None)
        if mux is None:
            muxes_known = [mux.id for mux in known.muxes]
            return f"a mux of this board before it{nearest(name, muxes_known)}"
        if (mux.place.segment, mux.place.muxes) != (before.segment, before.muxes):
            return f"mux {name} where it is, on {mux.place.segment}"
        channels = MUX_CHANNELS[mux.part]
        if not channel.isdecimal() or int(channel) >= channels:
            return f"a channel of {name} ({mux.part}), 0..{channels - 1}"
        muxes.append((mux.place.address, int(channel)))
    return Place(segment=segment, muxes=tuple(muxes), address=address)


def _step(fields: Fields, lines: Mapping[str, Mapping[str, int]]) -> PowerStep:
    wait = fields.choice("do", ("set", "wait")) == "wait"
    text = fields.text("line", max_bytes=80)
    device, _, line = text.partition(".")
    if line not in lines.get(device, {}):
        known = [f"{name}.{bit}" for name, bits in lines.items() for bit in bits]
        want = f"DEVICE.LINE of an expander{nearest(text, known)}"
        raise fields.fail("line", want, shown(text))
    return PowerStep(
        device=device,
        line=line,
        value=fields.integer("value", 1, high=1),
        wait=wait,
        within_ms=fields.integer("within_ms", low=0, high=10_000),
    )


def _one_of(fields: Fields, key: str, values: Sequence[int]) -> int:
    value = fields.integer(key, high=max(values))
    if value not in values:
        raise fields.fail(key, f"one of {', '.join(map(str, values))}", str(value))
    return value


def _check_ids(named: Sequence[tuple[KeyPath, str]], what: str = "an id") -> None:
    first: dict[str, KeyPath] = {}
    for path, name in named:
        if name in first:
            got = f"{name}, as in {_words(first[name])}"
            raise FieldError(path, f"{what} that nothing else has", got)
        first[name] = path


def _words(path: KeyPath) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)[1:]
