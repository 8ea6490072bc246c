"""Openers of the registry's rows, but for windows (`hal.window_openers`).

Backends are imported when they are opened, so that a world loads only its own.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hal.cxl_ports import CxlMemdev
from hal.errors import Refused, Unavailable
from hal.opening import World, keeper_of, node_of
from hal.pci_ports import PciAddress, PciFunction
from hal.ports import ByteStream, Event, SlotPower
from hal.smbus_ports import SmbusSegment
from hal.spec import Spec

if TYPE_CHECKING:
    from hal.replay import Signal

BAUD_DEFAULT: Final = 115_200


def serial_line(world: World, spec: Spec) -> ByteStream:
    from hal.linux.serial import SerialLine

    if not spec.target.startswith("/"):
        raise Refused(f"{spec.text!r}: want serial:/absolute/path?baud=N")
    return SerialLine(spec.target, baud=spec.integer("baud", BAUD_DEFAULT))


def mock_line(world: World, spec: Spec) -> ByteStream:
    node = node_of(world, spec)
    line = node.kernel.lines.get(spec.target)
    if line is None:
        known = ", ".join(sorted(node.kernel.lines)[:8]) or "none"
        raise Unavailable(f"{spec.text!r}: no such line in the virtual world; known: {known}")
    return line.open(spec.choice("side", ("a", "b")), node)


def local_power(world: World, spec: Spec) -> SlotPower:
    from hal.local.power import LocalPower

    return LocalPower(keeper_of(world, spec))


def mock_power(world: World, spec: Spec) -> SlotPower:
    from hal.mock.power import MockPower

    return MockPower(node_of(world, spec))


def vfio_function(world: World, spec: Spec) -> PciFunction:
    from hal.linux.vfio import VfioHost

    address = PciAddress.parse(spec.target)
    host = world.vfio if world.vfio is not None else VfioHost(world.reactor)
    return host.open(address)


def mock_function(world: World, spec: Spec) -> PciFunction:
    from hal.mock.pci import MockPciFunction

    node = node_of(world, spec)
    model = node.kernel.pci.models.get(spec.target)
    if model is None:
        known = ", ".join(sorted(node.kernel.pci.models)[:8]) or "none"
        raise Unavailable(f"{spec.text!r}: no such function in the virtual world; known: {known}")
    return MockPciFunction(node, model)


def i2c_segment(world: World, spec: Spec) -> SmbusSegment:
    from hal.linux.smbus import LinuxSmbusSegment

    if not re.fullmatch(r"[0-9]{1,3}", spec.target):
        raise Refused(f"{spec.text!r}: want i2c:N, the number of /dev/i2c-N")
    return LinuxSmbusSegment(int(spec.target), world.reactor)


def mock_smbus(world: World, spec: Spec) -> SmbusSegment:
    from hal.mock.smbus import MockSmbusSegment

    node = node_of(world, spec)
    bus = node.kernel.smbus.get(spec.target)
    if bus is None:
        known = ", ".join(sorted(node.kernel.smbus)[:8]) or "none"
        raise Unavailable(f"{spec.text!r}: no such bus in the virtual world; there are: {known}")
    return MockSmbusSegment(node, bus)


def cxl_memdev(world: World, spec: Spec) -> CxlMemdev:
    from hal.linux.cxl_memdev import LinuxCxlMemdev
    from hal.linux.cxl_sysfs import memdev_at

    name = spec.target
    if ":" in name:
        name = memdev_at(str(PciAddress.parse(name)))
    elif not re.fullmatch(r"mem[0-9]{1,6}", name):
        raise Refused(f"{spec.text!r}: want cxl:memN, as in /dev/cxl, or cxl:DDDD:BB:DD.F")
    return LinuxCxlMemdev(name, world.reactor)


def mock_cxl(world: World, spec: Spec) -> CxlMemdev:
    from hal.mock.cxl import MockCxlMemdev

    node = node_of(world, spec)
    host = node.kernel.cxl
    device = host.devices.get(spec.target)
    if device is None:
        known = ", ".join(sorted(host.devices)[:8]) or "none"
        raise Unavailable(f"{spec.text!r}: no such memory device; there are: {known}")
    return MockCxlMemdev(node, host, device)


def replayed(port: str) -> Callable[[World, Spec], Any]:
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
