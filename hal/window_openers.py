"""Openers of windows: sealed memory, BARs, CXL regions, and the mock's."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hal.errors import HalError, Refused, Unavailable
from hal.opening import WindowPair, World, keeper_of, node_of
from hal.pci_ports import PciAddress
from hal.ports import Done
from hal.spec import Spec

if TYPE_CHECKING:
    from hal.bar_layout import Side
    from hal.linux.pci_window import BarWindow

BARS_LAST: Final = 5


def shm_window(
    world: World, spec: Spec, slot: int, deadline_ns: int, done: Done[WindowPair]
) -> None:
    from hal.local.window import submit_open_window

    submit_open_window(keeper_of(world, spec), slot, deadline_ns, done)


def pci_window(world: World, spec: Spec) -> WindowPair:
    from hal.linux.pci_window import open_pci_window

    side, at_least = _side(spec), spec.integer("bytes", 0)
    return _with_bell(world, open_pci_window(spec.target, side, at_least_bytes=at_least))


def map_window(world: World, spec: Spec) -> WindowPair:
    from hal.linux.pci_window import open_mapped_window

    side, at_least = _side(spec), spec.integer("bytes", 0)
    return _with_bell(world, open_mapped_window(spec.target, side, at_least_bytes=at_least))


def region_window(world: World, spec: Spec) -> WindowPair:
    from hal.linux.cxl_sysfs import LinuxCxlBus

    return _with_bell(world, LinuxCxlBus().map_region(spec.target, _side(spec)))


def vfio_window(
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


def later(open_now: Callable[[World, Spec], WindowPair]) -> Callable[..., None]:
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


def mock_window(
    world: World,
    spec: Spec,
    slot: int,
    deadline_ns: int,
    done: Done[WindowPair],
) -> None:
    node = node_of(world, spec)
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
