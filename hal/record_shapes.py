"""What of each port is recorded: its calls, and the objects that they hand out.

A port's methods are those of its Protocol. Three kinds of parameters are apart: `done` takes a
completion, `call` takes events, and `deadline_ns` is a time, which is not compared in a replay.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hal.cxl_ports import CxlMemdev
from hal.pci_ports import DmaBuffer, Interrupt, Mmio, PciFunction
from hal.ports import ByteStream, Doorbell, SlotPower, Window
from hal.smbus_ports import SmbusSegment

DONE: Final = "done"
LISTENER: Final = "call"
DEADLINE: Final = "deadline_ns"
APART: Final = (DONE, LISTENER, DEADLINE)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One kind of object."""

    kind: str
    protocol: type
    calls: tuple[str, ...]
    properties: tuple[str, ...] = ()  # read once, when the object is made
    has_handle: bool = False  # ready when the recording has `ready_calls` next
    ready_calls: tuple[str, ...] = ()
    makes: Mapping[str, str] = field(default_factory=dict)  # call -> kind of what it hands out
    has_memory: bool = False  # `view`: changes are noticed at every other call

    def arguments(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """By the names of the Protocol, defaults filled in. Raises TypeError for a wrong call."""
        bound = _SIGNATURES[self.kind, name].bind(None, *args, **kwargs)
        bound.apply_defaults()
        found = dict(bound.arguments)
        found.pop("self")
        return found


def _shape(kind: str, protocol: type, calls: str, **more: Any) -> Shape:
    return Shape(kind=kind, protocol=protocol, calls=tuple(calls.split()), **more)


SHAPES: Final[Mapping[str, Shape]] = {
    shape.kind: shape
    for shape in (
        _shape(
            "byte_stream",
            ByteStream,
            "read write close",
            has_handle=True,
            ready_calls=("read",),
        ),
        _shape(
            "window",
            Window,
            "write read publish acquire close",
            properties=("tx_bytes", "rx_bytes"),
        ),
        _shape("doorbell", Doorbell, "ring clear close", has_handle=True, ready_calls=("clear",)),
        _shape("power", SlotPower, "submit on_change"),
        _shape(
            "pci_function",
            PciFunction,
            "regions read_config write_config map dma interrupts on_event reset submit_reset close",
            properties=("address",),
            makes={"map": "mmio", "dma": "dma", "interrupts": "interrupt"},
        ),
        _shape(
            "mmio",
            Mmio,
            "read32 write32 read64 write64 barrier copy_to copy_from close",
            properties=("size_bytes",),
        ),
        _shape("dma", DmaBuffer, "close", properties=("iova", "size_bytes"), has_memory=True),
        _shape(
            "interrupt",
            Interrupt,
            "clear mask unmask close",
            has_handle=True,
            ready_calls=("clear",),
        ),
        _shape(
            "smbus",
            SmbusSegment,
            "submit check_muxes recover on_event close",
            properties=("capabilities",),
        ),
        _shape("cxl", CxlMemdev, "opcodes submit close", properties=("info",)),
    )
}

PORTS: Final[Mapping[str, tuple[str, ...]]] = {  # port of the registry -> kinds that it opens
    "byte_stream": ("byte_stream",),
    "window": ("window", "doorbell"),
    "power": ("power",),
    "pci_function": ("pci_function",),
    "smbus": ("smbus",),
    "cxl": ("cxl",),
}

_SIGNATURES: Final = {
    (shape.kind, name): inspect.signature(getattr(shape.protocol, name))
    for shape in SHAPES.values()
    for name in shape.calls
}
