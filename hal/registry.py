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

A backend joins by one line in `TABLE`. Everything that is opened passes through `Registry.wrap`,
which is where a recorder of any port goes in.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from hal import openers, window_openers
from hal.cxl_ports import CxlMemdev
from hal.errors import HalError, Refused
from hal.opening import Opener, WindowPair, World
from hal.pci_ports import PciFunction
from hal.ports import ByteStream, Done, SlotPower
from hal.smbus_ports import SmbusSegment
from hal.spec import Spec, parse_spec

__all__ = ["TABLE", "Opener", "Registry", "Spec", "WindowPair", "World", "find", "parse_spec"]

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


TABLE: Final[Mapping[str, Mapping[str, Opener]]] = {
    "byte_stream": {
        "serial": Opener(open=openers.serial_line, options=frozenset({"baud"})),
        "mock": Opener(open=openers.mock_line, options=frozenset({"side"})),
        "replay": Opener(open=openers.replayed("byte_stream")),
    },
    "window": {
        "shm": Opener(open=window_openers.shm_window),
        "pci": Opener(
            open=window_openers.later(window_openers.pci_window),
            open_now=window_openers.pci_window,
            options=frozenset({"side", "bytes"}),
        ),
        "vfio": Opener(open=window_openers.vfio_window, options=frozenset({"side", "bytes"})),
        "map": Opener(
            open=window_openers.later(window_openers.map_window),
            open_now=window_openers.map_window,
            options=frozenset({"side", "bytes"}),
        ),
        "cxl": Opener(
            open=window_openers.later(window_openers.region_window),
            open_now=window_openers.region_window,
            options=frozenset({"side"}),
        ),
        "mock": Opener(open=window_openers.mock_window, options=frozenset({"side"})),
        "replay": Opener(
            open=window_openers.later(openers.replayed("window")),
            open_now=openers.replayed("window"),
        ),
    },
    "smbus": {
        "i2c": Opener(open=openers.i2c_segment),
        "mock": Opener(open=openers.mock_smbus),
        "replay": Opener(open=openers.replayed("smbus")),
    },
    "power": {
        "local": Opener(open=openers.local_power),
        "mock": Opener(open=openers.mock_power),
        "replay": Opener(open=openers.replayed("power")),
    },
    "pci_function": {
        "vfio": Opener(open=openers.vfio_function),
        "mock": Opener(open=openers.mock_function),
        "replay": Opener(open=openers.replayed("pci_function")),
    },
    "cxl": {
        "cxl": Opener(open=openers.cxl_memdev),
        "mock": Opener(open=openers.mock_cxl),
        "replay": Opener(open=openers.replayed("cxl")),
    },
}
