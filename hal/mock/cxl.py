"""The `CxlMemdev` and `CxlBus` ports over the devices of a virtual world.

Modelled besides the device: the kernel's table of commands (what it offers, what it keeps to
itself, whether raw commands are taken), regions with memory. Not modelled: switches, interleaving.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from hal.cxl_ports import (
    OPCODE_MAX,
    Claimed,
    CxlCommand,
    CxlDecoder,
    CxlInventory,
    CxlMemdevInfo,
    CxlPort,
    CxlRegion,
    CxlReply,
    Disabled,
    NotOffered,
    RawRefused,
)
from hal.errors import Absent, DeadlinePassed, DeviceGone, HalError, Refused, Unavailable
from hal.mock.cxl_device import EFFECTS, UNIT_BYTES, MockCxlDevice
from hal.mock.window import MockWindow, MockWindowPair
from hal.ports import Done

if TYPE_CHECKING:
    from hal.mock.kernel import VirtualKernel
    from hal.mock.node import Node

PENDING_LIMIT: Final = 64  # commands that wait for one mailbox
WINDOW_START: Final = 0x1_0000_0000  # host physical, of the first region


class MockCxlHost:
    """The devices and regions of one virtual world, and what its kernel does with commands."""

    def __init__(self, kernel: VirtualKernel) -> None:
        self.kernel = kernel
        self.devices: dict[str, MockCxlDevice] = {}
        self.regions: dict[str, MockWindowPair] = {}
        self.offered = frozenset(EFFECTS)  # opcodes of the kernel's table
        self.claimed: set[int] = set()
        self.raw_allowed = True

    def add_device(self, device: MockCxlDevice) -> MockCxlDevice:
        """Plug it in under its name."""
        if device.name in self.devices:
            raise ValueError(f"there is a device {device.name!r} already")
        self.devices[device.name] = device
        return device

    def add_region(self, name: str, size_bytes: int) -> MockWindowPair:
        """Memory of a device that both ends reach."""
        pair = MockWindowPair(self.kernel, name, ab_bytes=size_bytes // 2)
        self.regions[name] = pair
        return pair


class MockCxlMemdev:
    """One node's use of a device's mailbox: the `CxlMemdev` port."""

    def __init__(self, node: Node, host: MockCxlHost, device: MockCxlDevice) -> None:
        self._node, self._host, self._device = node, host, device
        self._kernel = node.kernel
        self._post = node.poster()
        self._free_ns = 0
        self._pending = 0
        self._closed = False

    @property
    def info(self) -> CxlMemdevInfo:
        return _info(self._device)

    def opcodes(self) -> Sequence[int]:
        """What the modelled kernel offers, sorted."""
        return sorted(self._host.offered)

    def submit(self, command: CxlCommand, deadline_ns: int, done: Done[CxlReply]) -> None:
        """One after another; a command that was given takes effect even when its time is up."""
        problem = self._refusal(command)
        if problem is not None:
            self._post(lambda: done(problem))
            return
        self._pending += 1
        silent = self._device.silent > 0
        self._device.silent -= silent
        at_ns = max(self._kernel.now_ns, self._free_ns) + self._device.command_ns
        self._free_ns = at_ns
        limit_ns = self._node.clock.kernel_ns(deadline_ns)
        given = False

        def give(result: CxlReply | HalError) -> None:
            nonlocal given
            if not given:
                given = True
                self._pending -= 1
                self._post(lambda: done(result))

        def effect() -> None:
            if not self._device.present:
                give(DeviceGone(f"{self._device.name}: removed while opcode {_hex(command)} ran"))
            elif not silent:
                code, payload = self._device.execute(command.opcode, command.payload)
                give(CxlReply(return_code=code, payload=payload))

        if limit_ns is not None and (silent or limit_ns < at_ns):
            text = f"{self._device.name}: no answer to opcode {_hex(command)} in time"
            late_ns = max(limit_ns, self._kernel.now_ns)
            self._kernel.at(late_ns, lambda: give(DeadlinePassed(text)))
        self._kernel.at(at_ns, effect)

    def close(self) -> None:
        """Twice is fine."""
        self._closed = True

    def _refusal(self, command: CxlCommand) -> HalError | None:
        name, host = self._device.name, self._host
        if self._closed or not self._device.present:
            return DeviceGone(f"{name}: {'closed' if self._closed else 'no such device any more'}")
        if not 0 < command.opcode <= OPCODE_MAX:
            return Refused(f"{name}: opcode {command.opcode}, want 0001h to FFFFh")
        if len(command.payload) > self._device.payload_max_bytes:
            limit = self._device.payload_max_bytes
            return Refused(f"{name}: payload of {len(command.payload)} bytes, at most {limit}")
        if self._pending >= PENDING_LIMIT:
            return Unavailable(f"{name}: {PENDING_LIMIT} commands wait already; try again later")
        if command.raw:
            if not host.raw_allowed:
                return RawRefused(f"{name}: this kernel takes no raw commands")
            return None
        if command.opcode not in host.offered:
            return NotOffered(f"{name}: no way to send opcode {_hex(command)} but raw")
        if command.opcode in host.claimed:
            return Claimed(f"{name}: the kernel keeps opcode {_hex(command)} to itself")
        if command.opcode in self._device.lacks:
            return Disabled(f"{name}: this device has no opcode {_hex(command)}")
        return None


class MockCxlBus:
    """The `CxlBus` port."""

    def __init__(self, host: MockCxlHost) -> None:
        self._host = host

    def scan(self) -> CxlInventory:
        """One host bridge with all devices below it, regions as endpoints' decoders."""
        present = [d for _, d in sorted(self._host.devices.items()) if d.present]
        root = CxlPort(name="root0", parent="", uport="ACPI0017:00", targets=("0=pci0000:34",))
        bridge = CxlPort(
            name="port1",
            parent="root0",
            uport="pci0000:34",
            targets=tuple(f"{number}={d.address}" for number, d in enumerate(present)),
        )
        ends = [
            CxlPort(name=f"endpoint{number + 2}", parent="port1", uport=d.name, targets=())
            for number, d in enumerate(present)
        ]
        regions: list[CxlRegion] = []
        decoders: list[CxlDecoder] = []
        start = WINDOW_START
        for name, pair in sorted(self._host.regions.items()):
            size = sum(half.size_bytes for half in pair.halves.values())
            regions.append(
                CxlRegion(
                    name=name,
                    start=start,
                    size_bytes=size,
                    mode="ram",
                    uuid="",
                    committed=True,
                    dax=("dax0.0",),
                )
            )
            for end in ends[:1]:
                decoders.append(
                    CxlDecoder(
                        name=f"decoder{end.name.removeprefix('endpoint')}.{len(decoders)}",
                        port=end.name,
                        start=start,
                        size_bytes=size,
                        interleave_ways=1,
                        interleave_bytes=256,
                        kind="endpoint",
                        mode="ram",
                        region=name,
                        locked=False,
                    )
                )
            start += size
        return CxlInventory(
            memdevs=tuple(_info(device) for device in present),
            ports=(root, bridge, *ends),
            decoders=tuple(decoders),
            regions=tuple(regions),
        )

    def map_region(self, name: str, side: str) -> MockWindow:
        """A view of the region's memory. Raises Absent for an unknown one."""
        pair = self._host.regions.get(name)
        if pair is None:
            known = ", ".join(sorted(self._host.regions)) or "none"
            raise Absent(f"CXL region {name!r}: not there; there are: {known}")
        return pair.open_window(side)


def _info(device: MockCxlDevice) -> CxlMemdevInfo:
    volatile = device.active_volatile_units * UNIT_BYTES
    return CxlMemdevInfo(
        name=device.name,
        address=device.address,
        serial=device.serial,
        firmware_version=device.firmware,
        payload_max_bytes=device.payload_max_bytes,
        volatile_bytes=volatile,
        persistent_bytes=device.total_units * UNIT_BYTES - volatile,
        label_bytes=len(device.labels),
        numa_node=0,
        driver="cxl_mem",
    )


def _hex(command: CxlCommand) -> str:
    return f"{command.opcode:04X}h"
