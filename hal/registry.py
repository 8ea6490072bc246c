"""Which backend stands behind a spec string (DESIGN D7): one table per port, the mock in it.

    serial:/dev/ttyS1?baud=115200    byte_stream  a tty
    mock:cnm0-mc                     byte_stream  a line of the virtual kernel; ?side=a|b
    shm:cnm0                         window       sealed shared memory, by the keeper
    pci:0000:01:00.0/bar2?side=a     window       a BAR, by sysfs; &bytes=N for no less than that
    vfio:0000:01:00.0/bar2?side=a    window       the same through VFIO
    map:/dev/dax0.0?side=a           window       CXL memory, or the file behind an ivshmem
    mock:cnm0                        window       a window pair of the virtual kernel; ?side=a|b
    i2c:1                            smbus        /dev/i2c-1, an adapter of the kernel
    mock:board                       smbus        a bus of the virtual kernel
    local                            power        the local board's keeper
    mock                             power        the slots of the virtual kernel
    vfio:0000:3b:00.0                pci_function a function that is bound to vfio-pci
    mock:edu                         pci_function a function of the virtual host
    cxl:mem0                         cxl          a memory device's mailbox, /dev/cxl/mem0
    cxl:0000:37:00.0                 cxl          the same by its PCI address, which stays the same
    mock:mem0                        cxl          a memory device of the virtual host
    cxl:region0?side=a               window       a CXL region, by its dax device
    replay:FILE                      any port     a recording of `hal.record`, played back

    SCHEME[:TARGET[?KEY=VALUE[&KEY=VALUE...]]]

A backend joins by one line in `TABLE`. Everything that is opened passes through `Registry.wrap`,
which is where a recorder of any port goes in.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from hal.cxl_ports import CxlMemdev
from hal.errors import HalError, Refused, Unavailable
from hal.pci_ports import PciAddress, PciFunction
from hal.ports import ByteStream, Done, Doorbell, Event, Reactor, SlotPower, Window
from hal.smbus_ports import SmbusSegment

if TYPE_CHECKING:
    from hal.bar_layout import Side
    from hal.linux.pci_window import BarWindow
    from hal.linux.vfio import VfioHost
    from hal.local.client import KeeperClient
    from hal.mock.node import Node
    from hal.replay import Recording, Signal

SPEC_LIMIT: Final = 512  # characters
SCHEME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
OPTION: Final = re.compile(r"([a-z][a-z0-9_]{0,31})=([^&?=]{0,128})")
BAUD_DEFAULT: Final = 115_200
BARS_LAST: Final = 5

WindowPair: TypeAlias = tuple[Window, Doorbell]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A spec string, taken apart."""

    text: str
    scheme: str
    target: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    def integer(self, key: str, default: int) -> int:
        """An option as a number. Raises Refused for anything else."""
        value = self.options.get(key)
        if value is None:
            return default
        if not re.fullmatch(r"[0-9]{1,9}", value):
            raise Refused(f"{self.text!r}: {key}={value!r}; want a decimal number")
        return int(value)

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        """An option that is one of a few words; the first is the default. Raises Refused."""
        value = self.options.get(key, choices[0])
        if value not in choices:
            raise Refused(f"{self.text!r}: {key}={value!r}; want one of {', '.join(choices)}")
        return value


def parse_spec(text: str) -> Spec:
    """Take a spec string apart. Raises Refused that names the part which is wrong."""
    if len(text) > SPEC_LIMIT:
        raise Refused(f"spec of {len(text)} characters, at most {SPEC_LIMIT}: {text[:40]!r}...")
    if not text.isprintable():
        raise Refused(f"spec {text!r}: want printable characters only")
    scheme, _, rest = text.partition(":")
    if not SCHEME.fullmatch(scheme):
        raise Refused(f"spec {text!r}: want SCHEME:TARGET?KEY=VALUE, scheme of a-z, 0-9, - and _")
    target, mark, tail = rest.partition("?")
    options: dict[str, str] = {}
    for part in tail.split("&") if mark else ():
        found = OPTION.fullmatch(part)
        if found is None:
            raise Refused(f"spec {text!r}: option {part!r}; want KEY=VALUE")
        if found[1] in options:
            raise Refused(f"spec {text!r}: option {found[1]!r} is given twice")
        options[found[1]] = found[2]
    return Spec(text=text, scheme=scheme, target=target, options=options)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What the openers may need of their caller: each takes what it knows."""

    reactor: Reactor
    keeper: "KeeperClient | None" = None  # local board: who holds the descriptors
    vfio: "VfioHost | None" = None  # functions that share an IOMMU group need one for all
    node: "Node | None" = None  # mock: whose handles they will be
    replays: "dict[str, Recording]" = field(default_factory=dict)  # by path; one reading of each


@dataclass(frozen=True, slots=True, kw_only=True)
class Opener:
    """One row: how a scheme opens a port, and the options that it knows."""

    open: Callable[..., Any]
    options: frozenset[str] = frozenset()
    open_now: Callable[..., Any] | None = None  # of what needs no waiting


Wrap: TypeAlias = Callable[[str, Spec, Any], Any]


def unwrapped(port: str, spec: Spec, opened: Any) -> Any:
    """The default of `Registry.wrap`."""
    return opened


class Registry:
    """Opens ports by spec string in one world."""

    def __init__(self, world: World, *, wrap: Wrap = unwrapped) -> None:
        """`wrap(port, spec, opened)` gives what is handed out; `opened` is the port, for a window
        the pair of window and doorbell."""
        self._world = world
        self._wrap = wrap

    def open_stream(self, text: str) -> ByteStream:
        """A control link. Raises Refused (the spec is wrong) and what the backend raises."""
        spec, opener = find("byte_stream", text)
        stream: ByteStream = self._wrap("byte_stream", spec, opener.open(self._world, spec))
        return stream

    def open_power(self, text: str) -> SlotPower:
        """The slots' power. Raises Refused and what the backend raises."""
        spec, opener = find("power", text)
        power: SlotPower = self._wrap("power", spec, opener.open(self._world, spec))
        return power

    def open_function(self, text: str) -> PciFunction:
        """A PCI function that is ours. Raises Refused and what the backend raises."""
        spec, opener = find("pci_function", text)
        made: PciFunction = self._wrap("pci_function", spec, opener.open(self._world, spec))
        return made

    def open_smbus(self, text: str) -> SmbusSegment:
        """An SMBus segment. Raises Refused and what the backend raises."""
        spec, opener = find("smbus", text)
        segment: SmbusSegment = self._wrap("smbus", spec, opener.open(self._world, spec))
        return segment

    def open_cxl(self, text: str) -> CxlMemdev:
        """A CXL memory device. Raises Refused and what the backend raises."""
        spec, opener = find("cxl", text)
        memdev: CxlMemdev = self._wrap("cxl", spec, opener.open(self._world, spec))
        return memdev

    def submit_open_window(
        self, text: str, slot: int, deadline_ns: int, done: Done[WindowPair]
    ) -> None:
        """A slot's window and doorbell. A wrong spec is Refused at once, by raising."""
        spec, opener = find("window", text)

        def opened(result: WindowPair | HalError) -> None:
            done(result if isinstance(result, HalError) else self._wrap("window", spec, result))

        opener.open(self._world, spec, slot, deadline_ns, opened)

    def open_shared_window(self, text: str) -> WindowPair:
        """A window in memory that both ends map (schemes pci and map), at once: for a start.
        Raises Refused, Absent, Unavailable, DeviceGone."""
        spec, opener = find("window", text)
        if opener.open_now is None:
            raise Refused(f"{text!r}: want a window in shared memory, pci:... or map:...")
        pair: WindowPair = self._wrap("window", spec, opener.open_now(self._world, spec))
        return pair


def find(port: str, text: str) -> tuple[Spec, Opener]:
    """The spec and its row in the table. Raises Refused with what the port could have had."""
    rows = TABLE[port]
    spec = parse_spec(text)
    opener = rows.get(spec.scheme)
    if opener is None:
        raise Refused(f"{port} {text!r}: no scheme {spec.scheme!r}; known: {', '.join(rows)}")
    unknown = sorted(spec.options.keys() - opener.options)
    if unknown:
        known = ", ".join(sorted(opener.options)) or "none"
        raise Refused(f"{port} {text!r}: no option {unknown[0]!r}; known: {known}")
    return spec, opener


# --- the rows; backends are imported when they are opened, so that a world loads only its own ---


def _serial(world: World, spec: Spec) -> ByteStream:
    from hal.linux.serial import SerialLine

    if not spec.target.startswith("/"):
        raise Refused(f"{spec.text!r}: want serial:/absolute/path?baud=N")
    return SerialLine(spec.target, baud=spec.integer("baud", BAUD_DEFAULT))


def _mock_line(world: World, spec: Spec) -> ByteStream:
    node = _node(world, spec)
    line = node.kernel.lines.get(spec.target)
    if line is None:
        known = ", ".join(sorted(node.kernel.lines)[:8]) or "none"
        raise Unavailable(f"{spec.text!r}: no such line in the virtual world; known: {known}")
    return line.open(spec.choice("side", ("a", "b")), node)


def _shm(world: World, spec: Spec, slot: int, deadline_ns: int, done: Done[WindowPair]) -> None:
    from hal.local.window import submit_open_window

    submit_open_window(_keeper(world, spec), slot, deadline_ns, done)


def _pci_window(world: World, spec: Spec) -> WindowPair:
    from hal.linux.pci_window import open_pci_window

    side, at_least = _side(spec), spec.integer("bytes", 0)
    return _with_bell(world, open_pci_window(spec.target, side, at_least_bytes=at_least))


def _map_window(world: World, spec: Spec) -> WindowPair:
    from hal.linux.pci_window import open_mapped_window

    side, at_least = _side(spec), spec.integer("bytes", 0)
    return _with_bell(world, open_mapped_window(spec.target, side, at_least_bytes=at_least))


def _region_window(world: World, spec: Spec) -> WindowPair:
    from hal.linux.cxl_sysfs import LinuxCxlBus

    return _with_bell(world, LinuxCxlBus().map_region(spec.target, _side(spec)))


def _vfio_window(
    world: World, spec: Spec, slot: int, deadline_ns: int, done: Done[WindowPair]
) -> None:
    """By the keeper's descriptors where there is a keeper: then nobody's death resets it."""
    from hal.linux.vfio import VfioFunction, VfioHost
    from hal.local.functions import submit_open_function

    side, at_least = _side(spec), spec.integer("bytes", 0)
    name, _, bar = spec.target.partition("/bar")
    if not bar.isdecimal() or int(bar) > BARS_LAST:
        raise Refused(f"{spec.text!r}: want vfio:0000:01:00.0/bar2?side=a")
    address = PciAddress.parse(name)

    def opened(function: VfioFunction | HalError) -> None:
        done(function if isinstance(function, HalError) else window_of(function))

    def window_of(function: VfioFunction) -> WindowPair | HalError:
        from hal.linux.pci_window import BarWindow
        from hal.linux.vfio_region import MappedRegion

        try:
            region = function.map(int(bar), at_least)
            if not isinstance(region, MappedRegion):
                raise Refused(f"{spec.text!r}: BAR {bar} can't be mapped in one piece")
            window = BarWindow(region.memory, side, spec.target, on_close=function.close)
            return _with_bell(world, window)
        except HalError as exc:
            function.close()
            return exc

    host = world.vfio if world.vfio is not None else VfioHost(world.reactor)
    if world.keeper is not None:
        submit_open_function(world.keeper, host, address, deadline_ns, opened)
        return
    result: VfioFunction | HalError
    try:
        result = host.open(address)
    except HalError as exc:
        result = exc
    world.reactor.post(lambda: opened(result))


def _side(spec: Spec) -> "Side":
    return "b" if spec.choice("side", ("a", "b")) == "b" else "a"


def _with_bell(world: World, window: "BarWindow") -> WindowPair:
    from hal.linux.polled_bell import PolledBell

    try:
        return window, PolledBell(window, world.reactor)
    except HalError:
        window.close()
        raise


def _later(open_now: Callable[[World, Spec], WindowPair]) -> Callable[..., None]:
    """A window that opens at once, as the port has it."""

    def opener(
        world: World, spec: Spec, slot: int, deadline_ns: int, done: Done[WindowPair]
    ) -> None:
        _side(spec), spec.integer("bytes", 0)  # a wrong spec is Refused by raising
        result: WindowPair | HalError
        try:
            result = open_now(world, spec)
        except HalError as exc:
            result = exc
        world.reactor.post(lambda: done(result))

    return opener


def _mock_window(
    world: World,
    spec: Spec,
    slot: int,
    deadline_ns: int,
    done: Done[WindowPair],
) -> None:
    node = _node(world, spec)
    side = spec.choice("side", ("a", "b"))
    pair = node.kernel.windows.get(spec.target)
    if pair is None:
        known = ", ".join(sorted(node.kernel.windows)[:8]) or "none"
        error = Unavailable(
            f"{spec.text!r}: no such window in the virtual world; there are: {known}"
        )
        world.reactor.post(lambda: done(error))
        return
    opened = pair.open_window(side), pair.open_doorbell(side, node)
    world.reactor.post(lambda: done(opened))


def _local_power(world: World, spec: Spec) -> SlotPower:
    from hal.local.power import LocalPower

    return LocalPower(_keeper(world, spec))


def _mock_power(world: World, spec: Spec) -> SlotPower:
    from hal.mock.power import MockPower

    return MockPower(_node(world, spec))


def _vfio(world: World, spec: Spec) -> PciFunction:
    from hal.linux.vfio import VfioHost

    address = PciAddress.parse(spec.target)
    host = world.vfio if world.vfio is not None else VfioHost(world.reactor)
    return host.open(address)


def _mock_function(world: World, spec: Spec) -> PciFunction:
    from hal.mock.pci import MockPciFunction

    node = _node(world, spec)
    model = node.kernel.pci.models.get(spec.target)
    if model is None:
        known = ", ".join(sorted(node.kernel.pci.models)[:8]) or "none"
        raise Unavailable(f"{spec.text!r}: no such function in the virtual world; known: {known}")
    return MockPciFunction(node, model)


def _i2c(world: World, spec: Spec) -> SmbusSegment:
    from hal.linux.smbus import LinuxSmbusSegment

    if not re.fullmatch(r"[0-9]{1,3}", spec.target):
        raise Refused(f"{spec.text!r}: want i2c:N, the number of /dev/i2c-N")
    return LinuxSmbusSegment(int(spec.target), world.reactor)


def _mock_smbus(world: World, spec: Spec) -> SmbusSegment:
    from hal.mock.smbus import MockSmbusSegment

    node = _node(world, spec)
    bus = node.kernel.smbus.get(spec.target)
    if bus is None:
        known = ", ".join(sorted(node.kernel.smbus)[:8]) or "none"
        raise Unavailable(f"{spec.text!r}: no such bus in the virtual world; there are: {known}")
    return MockSmbusSegment(node, bus)


def _cxl(world: World, spec: Spec) -> CxlMemdev:
    from hal.linux.cxl_memdev import LinuxCxlMemdev
    from hal.linux.cxl_sysfs import memdev_at

    name = spec.target
    if ":" in name:
        name = memdev_at(str(PciAddress.parse(name)))
    elif not re.fullmatch(r"mem[0-9]{1,6}", name):
        raise Refused(f"{spec.text!r}: want cxl:memN, as in /dev/cxl, or cxl:DDDD:BB:DD.F")
    return LinuxCxlMemdev(name, world.reactor)


def _mock_cxl(world: World, spec: Spec) -> CxlMemdev:
    from hal.mock.cxl import MockCxlMemdev

    node = _node(world, spec)
    host = node.kernel.cxl
    device = host.devices.get(spec.target)
    if device is None:
        known = ", ".join(sorted(host.devices)[:8]) or "none"
        raise Unavailable(f"{spec.text!r}: no such memory device; there are: {known}")
    return MockCxlMemdev(node, host, device)


def _replayed(port: str) -> Callable[[World, Spec], Any]:
    def opener(world: World, spec: Spec) -> Any:
        from hal.replay import Recording

        if spec.target not in world.replays:
            world.replays[spec.target] = Recording(Path(spec.target))
        recording = world.replays[spec.target]
        return recording.open(port, world.reactor, lambda: _signal(world))

    return opener


def _signal(world: World) -> "Signal":
    from hal.replay import Signal

    if world.node is None:
        from hal.linux.event_signal import event_signal

        return event_signal()
    kernel = world.node.kernel
    handle = kernel.open_handle(world.node, None, lambda: kernel.close_handle(handle))
    return Signal(
        handle=handle.number,
        set=lambda ready: handle.set(Event.READ if ready else Event(0)),
        close=handle.close,
    )


def _node(world: World, spec: Spec) -> "Node":
    if world.node is None:
        raise Unavailable(f"{spec.text!r}: wants the virtual world of a simulation; none is here")
    return world.node


def _keeper(world: World, spec: Spec) -> "KeeperClient":
    if world.keeper is None:
        raise Unavailable(f"{spec.text!r}: wants the local board's keeper; we are not connected")
    return world.keeper


TABLE: Final[Mapping[str, Mapping[str, Opener]]] = {
    "byte_stream": {
        "serial": Opener(open=_serial, options=frozenset({"baud"})),
        "mock": Opener(open=_mock_line, options=frozenset({"side"})),
        "replay": Opener(open=_replayed("byte_stream")),
    },
    "window": {
        "shm": Opener(open=_shm),
        "pci": Opener(
            open=_later(_pci_window), open_now=_pci_window, options=frozenset({"side", "bytes"})
        ),
        "vfio": Opener(open=_vfio_window, options=frozenset({"side", "bytes"})),
        "map": Opener(
            open=_later(_map_window), open_now=_map_window, options=frozenset({"side", "bytes"})
        ),
        "cxl": Opener(
            open=_later(_region_window), open_now=_region_window, options=frozenset({"side"})
        ),
        "mock": Opener(open=_mock_window, options=frozenset({"side"})),
        "replay": Opener(open=_later(_replayed("window")), open_now=_replayed("window")),
    },
    "smbus": {
        "i2c": Opener(open=_i2c),
        "mock": Opener(open=_mock_smbus),
        "replay": Opener(open=_replayed("smbus")),
    },
    "power": {
        "local": Opener(open=_local_power),
        "mock": Opener(open=_mock_power),
        "replay": Opener(open=_replayed("power")),
    },
    "pci_function": {
        "vfio": Opener(open=_vfio),
        "mock": Opener(open=_mock_function),
        "replay": Opener(open=_replayed("pci_function")),
    },
    "cxl": {
        "cxl": Opener(open=_cxl),
        "mock": Opener(open=_mock_cxl),
        "replay": Opener(open=_replayed("cxl")),
    },
}
