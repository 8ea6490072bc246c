"""Linux's CXL: the ioctls against a kernel that is played here, sysfs against trees like its own.

The real ones are met in a virtual machine (tests/hil/cases/cxl.py).
"""

import errno
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cffi import FFI

from hal.cxl_ports import (
    Claimed,
    CxlCommand,
    CxlReply,
    Disabled,
    DriverMissing,
    NotOffered,
    NotPermitted,
    RawRefused,
)
from hal.errors import Absent, DeadlinePassed, DeviceGone, Refused, Unavailable
from hal.linux import cxl_ioctl, cxl_sysfs
from hal.linux.cxl_memdev import LinuxCxlMemdev
from hal.linux.cxl_sysfs import LinuxCxlBus, memdev_at
from hal.mock.cxl_device import MockCxlDevice
from hal.mock.kernel import VirtualKernel
from hal.registry import Registry, World
from protocol.cxl.memory import SetPartitionRequest
from tests.contract import test_cxl as contract
from tests.contract.results import Result, soon
from tests.contract.rigs import CxlMemdevRig
from tests.contract.worlds import RealWorld

ffi = FFI()
IDENTIFY_BYTES = 0x43  # the kernel's structure; later ones of the device are longer


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


class PlayedKernel:
    """/dev/cxl/mem0 and its ioctls, by a modelled device. `table` as in drivers/cxl/core/mbox.c."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.device = MockCxlDevice(VirtualKernel(1), "mem0")
        self.device.lacks |= {0x4203}
        self.known = dict.fromkeys(range(1, 21), (cxl_ioctl.VARIABLE, cxl_ioctl.VARIABLE))
        del self.known[cxl_ioctl.ID_RAW]
        self.known[6] = (8, cxl_ioctl.VARIABLE)  # GET_LSA
        self.known[9] = (10, 0)  # SET_PARTITION_INFO
        self.claimed: set[int] = set()
        self.error = 0
        self.gate = threading.Event()
        self.gate.set()
        self.sent: list[tuple[int, bytes]] = []
        put(top / "dev" / "mem0", "")
        real = top / "sys" / "0000:35:00.0" / "mem0"
        put(real / "serial", hex(self.device.serial))
        put(real / "firmware_version", self.device.firmware)
        put(real / "payload_max", str(self.device.payload_max_bytes))
        put(real / "label_storage_size", str(len(self.device.labels)))
        put(real / "ram" / "size", "0x0")
        put(real / "pmem" / "size", hex(1 << 30))
        (top / "devices").mkdir()
        (top / "devices" / "mem0").symlink_to(real)

    def open(self, world: RealWorld) -> LinuxCxlMemdev:
        return LinuxCxlMemdev(
            "mem0", world.reactor, devices=self.top / "devices", dev=self.top / "dev"
        )

    def ioctl(self, fd: int, request: int, call: bytearray) -> int:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        if request == 0x8008_CE01:
            self._query(call)
        else:
            assert request == 0xC030_CE02
            self._send(call)
        return 0

    def _query(self, call: bytearray) -> None:
        (count,) = struct.unpack_from("<I", call)
        struct.pack_into("<I", call, 0, max(self.known) + 1)
        for number in range(count):
            sizes = self.known.get(number, (0, 0))
            entry = (number if number in self.known else 0, 0, *sizes)
            struct.pack_into("<IIII", call, 8 + 16 * number, *entry)

    def _send(self, call: bytearray) -> None:
        assert len(call) == 48
        number, flags, raw, rsvd, _ret, in_size, in_rsvd, in_at = struct.unpack_from(
            "<IIHHIIIQ", call
        )
        out_size, out_rsvd, out_at = struct.unpack_from("<IIQ", call, 32)
        assert (flags, rsvd, in_rsvd, out_rsvd) == (0, 0, 0, 0)
        opcodes = {ident: opcode for opcode, ident in cxl_ioctl.OPCODES.items()}
        opcode = raw if number == cxl_ioctl.ID_RAW else opcodes[number]
        payload = bytes(ffi.buffer(ffi.cast("char *", in_at), in_size)) if in_size else b""
        self.sent.append((opcode, payload))
        assert self.gate.wait(20)
        if opcode in self.claimed:
            raise OSError(errno.EBUSY, "Device or resource busy")
        if opcode in self.device.lacks:
            raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")
        if self.known[number][0] not in (cxl_ioctl.VARIABLE, in_size):
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        code, answer = self.device.execute(opcode, payload)
        answer = answer[:IDENTIFY_BYTES] if opcode == 0x4000 else answer
        assert len(answer) <= out_size
        ffi.buffer(ffi.cast("char *", out_at), out_size)[: len(answer)] = answer
        struct.pack_into("<I", call, 12, code)
        struct.pack_into("<I", call, 32, len(answer))


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlayedKernel:
    made = PlayedKernel(tmp_path)
    monkeypatch.setattr("hal.linux.cxl_ioctl.fcntl.ioctl", made.ioctl)
    return made


@pytest.fixture
def world() -> Iterator[RealWorld]:
    made = RealWorld()
    yield made
    made.close()


def ask(world: RealWorld, port: LinuxCxlMemdev, command: CxlCommand, seconds: float = 20) -> Any:
    result: Result[CxlReply] = Result()
    port.submit(command, soon(world, seconds), result)
    world.run_until(lambda: result.came)
    return result.values[0]


CHECKS = [call for name, call in vars(contract).items() if name.startswith("test_")]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_contract_holds_over_the_ioctls(
    check: Callable[..., None], kernel: PlayedKernel, world: RealWorld
) -> None:
    port = kernel.open(world)

    def remove() -> None:
        kernel.error = errno.ENXIO

    rig = CxlMemdevRig(
        memdev=port,
        lacking=0x4203,
        unoffered=0x0100,
        takes_raw=False,
        has_health=True,
        remove=remove,
    )
    try:
        check(rig, world)
    finally:
        port.close()


def test_the_ioctl_numbers_are_those_of_the_header() -> None:
    # <asm-generic/ioctl.h>: direction << 30 | size << 16 | type << 8 | number; read 2, write 1
    assert cxl_ioctl.QUERY_COMMANDS == 2 << 30 | 8 << 16 | 0xCE << 8 | 1
    assert cxl_ioctl.SEND_COMMAND == 3 << 30 | 48 << 16 | 0xCE << 8 | 2
    assert cxl_ioctl.SEND.size == 48
    assert sorted(cxl_ioctl.OPCODES.values()) == [1, *range(3, 21)]


@pytest.mark.parametrize(
    ("number", "raw", "kind", "word"),
    [
        (errno.ENOTTY, False, Disabled, "Command Effects Log"),
        (errno.ENOTTY, True, RawRefused, "CONFIG_CXL_MEM_RAW_COMMANDS"),
        (errno.EPERM, True, RawRefused, "locked down"),
        (errno.EPERM, False, NotPermitted, "root"),
        (errno.EACCES, False, NotPermitted, "root"),
        (errno.EBUSY, False, Claimed, "cxl_pmem"),
        (errno.ENXIO, False, DeviceGone, "gone"),
        (errno.ENODEV, False, DeviceGone, "gone"),
        (errno.ENOMEM, False, Refused, "table"),
        (errno.EINVAL, False, Refused, "table"),
        (errno.ETIMEDOUT, False, DeadlinePassed, "2 s"),
        (errno.EFAULT, False, Unavailable, "4102h"),
    ],
)
def test_each_refusal_of_the_kernel_says_what_is_missing(
    number: int, raw: bool, kind: type, word: str
) -> None:
    error = cxl_ioctl.failure(OSError(number, os.strerror(number)), "mem3", 0x4102, raw=raw)
    assert type(error) is kind
    for part in (word, "/dev/cxl/mem3", "4102h", os.strerror(number)):
        assert part in str(error)


def test_a_command_that_a_driver_keeps_is_claimed(kernel: PlayedKernel, world: RealWorld) -> None:
    kernel.claimed.add(0x4103)
    port = kernel.open(world)
    error = ask(world, port, CxlCommand(opcode=0x4103, payload=bytes(12)))
    assert isinstance(error, Claimed)
    port.close()


def test_partitions_are_set_with_the_byte_that_the_kernel_wants(
    kernel: PlayedKernel, world: RealWorld
) -> None:
    port = kernel.open(world)
    payload = SetPartitionRequest(volatile_units=2).to_bytes()
    reply = ask(world, port, CxlCommand(opcode=0x4101, payload=payload))
    assert reply == CxlReply(return_code=0, payload=b"")
    assert kernel.sent[-1] == (0x4101, payload + b"\0")
    port.close()


def test_an_answer_that_comes_after_its_deadline_is_dropped_and_counted(
    kernel: PlayedKernel, world: RealWorld
) -> None:
    port = kernel.open(world)
    kernel.gate.clear()
    error = ask(world, port, CxlCommand(opcode=0x4000), seconds=0.05)
    assert isinstance(error, DeadlinePassed)
    kernel.gate.set()
    world.run_until(lambda: port.late_results == 1)
    assert isinstance(ask(world, port, CxlCommand(opcode=0x4000)), CxlReply)
    port.close()


def test_what_waits_when_the_port_is_closed_is_told_so(
    kernel: PlayedKernel, world: RealWorld
) -> None:
    port = kernel.open(world)
    kernel.gate.clear()
    results: list[Result[CxlReply]] = [Result() for _ in range(3)]
    for result in results:
        port.submit(CxlCommand(opcode=0x4000), soon(world), result)
    threading.Timer(0.05, kernel.gate.set).start()
    port.close()
    world.run_until(lambda: all(result.came for result in results))
    assert isinstance(results[0].values[0], CxlReply), "it was in the kernel already"
    assert all(isinstance(result.values[0], DeviceGone) for result in results[1:])


def test_more_commands_than_the_queue_holds_are_refused(
    kernel: PlayedKernel, world: RealWorld
) -> None:
    port = kernel.open(world)
    kernel.gate.clear()
    results: list[Result[CxlReply]] = [Result() for _ in range(66)]
    for result in results:
        port.submit(CxlCommand(opcode=0x4000), soon(world), result)
    kernel.gate.set()
    world.run_until(lambda: all(result.came for result in results))
    refused = [result for result in results if isinstance(result.values[0], Unavailable)]
    assert len(refused) == 2
    assert "64 commands" in str(refused[0].values[0])
    port.close()


def test_a_kernel_with_raw_commands_sends_the_opcode(
    kernel: PlayedKernel, world: RealWorld
) -> None:
    kernel.known[cxl_ioctl.ID_RAW] = (cxl_ioctl.VARIABLE, cxl_ioctl.VARIABLE)
    port = kernel.open(world)
    reply = ask(world, port, CxlCommand(opcode=0x0300, raw=True))
    assert (reply.return_code, len(reply.payload)) == (0, 8)
    assert kernel.sent[-1] == (0x0300, b"")
    assert isinstance(ask(world, port, CxlCommand(opcode=0x0300)), NotOffered)
    port.close()


def test_a_device_file_without_permission_names_what_to_do(
    kernel: PlayedKernel, world: RealWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("hal.linux.cxl_memdev.os.open", refuse)
    with pytest.raises(NotPermitted, match="udev rule"):
        kernel.open(world)


def test_a_file_that_is_no_cxl_device_is_refused_and_closed(
    tmp_path: Path, world: RealWorld
) -> None:
    made = PlayedKernel(tmp_path)  # its ioctls are not played: a plain file has none
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Unavailable, match="/dev/cxl/mem0"):
        made.open(world)
    assert len(os.listdir("/proc/self/fd")) == before


# --- sysfs ---


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A host bridge, a switch with one device, a region with a dax device: names and attributes
    as in a virtual machine with QEMU's cxl-upstream and cxl-type3."""
    devices = tmp_path / "devices"
    devices.mkdir()
    platform = tmp_path / "sys" / "platform" / "ACPI0017:00"
    root = platform / "root0"
    bridge = root / "port1"
    switch = bridge / "port2"
    end = switch / "endpoint3"
    pci = tmp_path / "sys" / "pci0000:34"
    upstream, function = pci / "0000:35:00.0", pci / "0000:37:00.0"
    mem = function / "mem0"
    put(mem / "serial", "0x0")
    put(mem / "firmware_version", "BWFW VERSION 00")
    put(mem / "payload_max", "2048")
    put(mem / "ram" / "size", "0x0")
    put(mem / "pmem" / "size", "0x10000000")
    put(mem / "label_storage_size", "1048576")
    put(mem / "numa_node", "-1")
    put(upstream / "vendor", "0x19e5")
    driver = tmp_path / "sys" / "bus" / "drivers" / "cxl_mem"
    driver.mkdir(parents=True)
    (mem / "driver").symlink_to(driver)
    for port, uport in ((root, platform), (bridge, pci), (switch, upstream), (end, mem)):
        port.mkdir(parents=True, exist_ok=True)
        (port / "uport").symlink_to(uport)
    (switch / "dport0").symlink_to(function)
    (bridge / "dport0").symlink_to(upstream)
    for port, number, kind in (
        (root, "0.0", {"cap_pmem": "1", "cap_ram": "1", "size": "0x100000000"}),
        (bridge, "1.0", {"size": "0x10000000", "region": "region0"}),
        (end, "3.0", {"size": "0x10000000", "mode": "pmem", "region": "region0"}),
    ):
        decoder = port / f"decoder{number}"
        for name, text in kind.items():
            put(decoder / name, text)
        put(decoder / "start", "0x190000000")
        put(decoder / "interleave_ways", "1")
        put(decoder / "interleave_granularity", "256")
        put(decoder / "locked", "0")
        (devices / decoder.name).symlink_to(decoder)
    region = root / "decoder0.0" / "region0"
    put(region / "resource", "0x190000000")
    put(region / "size", "0x10000000")
    put(region / "commit", "1")
    put(region / "uuid", "0f1e2d3c-0000-0000-0000-000000000001")
    for path in (root, bridge, switch, end, mem, region):
        (devices / path.name).symlink_to(path)
    dax = tmp_path / "dax"
    put(dax / "dax0.0" / "resource", "0x190200000")
    put(dax / "dax1.0" / "resource", "0x290000000")
    return tmp_path


def bus_of(tree: Path) -> LinuxCxlBus:
    return LinuxCxlBus(devices=tree / "devices", dax=tree / "dax", dev=tree / "dev")


def test_a_memory_device_is_read_with_its_pci_address(tree: Path) -> None:
    [info] = bus_of(tree).scan().memdevs
    assert (info.name, info.address, info.serial) == ("mem0", "0000:37:00.0", 0)
    assert (info.volatile_bytes, info.persistent_bytes, info.label_bytes) == (0, 1 << 28, 1 << 20)
    assert (info.payload_max_bytes, info.firmware_version) == (2048, "BWFW VERSION 00")
    assert (info.numa_node, info.driver) == (-1, "cxl_mem")
    assert memdev_at("0000:37:00.0", tree / "devices") == "mem0"


def test_the_topology_is_that_of_the_directories(tree: Path) -> None:
    ports = {port.name: port for port in bus_of(tree).scan().ports}
    assert {name: port.parent for name, port in ports.items()} == {
        "root0": "",
        "port1": "root0",
        "port2": "port1",
        "endpoint3": "port2",
    }
    assert ports["endpoint3"].uport == "mem0"
    assert ports["port2"].uport == "0000:35:00.0"
    assert ports["port2"].targets == ("0=0000:37:00.0",)


def test_decoders_and_regions_are_read(tree: Path) -> None:
    found = bus_of(tree).scan()
    kinds = {decoder.name: (decoder.kind, decoder.mode) for decoder in found.decoders}
    assert kinds == {
        "decoder0.0": ("root", "ram,pmem"),
        "decoder1.0": ("switch", ""),
        "decoder3.0": ("endpoint", "pmem"),
    }
    end = found.decoders[2]
    assert (end.start, end.size_bytes) == (0x1_9000_0000, 1 << 28)
    assert (end.port, end.region) == ("endpoint3", "region0")
    [region] = found.regions
    assert (region.name, region.committed, region.dax) == ("region0", True, ("dax0.0",))
    assert region.uuid.startswith("0f1e2d3c")


def test_a_region_is_mapped_through_its_dax_device(tree: Path) -> None:
    """The device file is a plain one here; its memory is the same to both sides."""
    (tree / "dev").mkdir()
    (tree / "dev" / "dax0.0").write_bytes(bytes(1 << 20))
    a, b = bus_of(tree).map_region("region0", "a"), bus_of(tree).map_region("region0", "b")
    a.write(64, b"over CXL memory")
    a.publish(0, 9)
    assert b.acquire(0) == 9
    assert bytes(b.read(64, 15)) == b"over CXL memory"
    a.close()
    b.close()


def test_a_region_that_nothing_offers_for_mapping_says_what_to_make(tree: Path) -> None:
    put(tree / "dax" / "dax0.0" / "resource", "0x0")
    put(tree / "devices" / "region0" / "commit", "0")
    with pytest.raises(Unavailable, match="ndctl create-namespace") as caught:
        bus_of(tree).map_region("region0", "a")
    assert "not committed" in str(caught.value)
    with pytest.raises(Absent, match="there are: region0"):
        bus_of(tree).map_region("region7", "a")


def test_a_kernel_without_cxl_is_told(tmp_path: Path) -> None:
    with pytest.raises(DriverMissing, match="CONFIG_CXL_BUS"):
        bus_of(tmp_path / "none").scan()
    assert "CONFIG_CXL_BUS" in cxl_sysfs.why_no_memdev("mem0", tmp_path / "none")


def test_a_device_that_has_no_driver_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "devices").mkdir()
    put(tmp_path / "pci" / "0000:35:00.0" / "class", "0x050210")
    put(tmp_path / "pci" / "0000:36:00.0" / "class", "0x010802")
    monkeypatch.setattr(cxl_sysfs, "PCI", tmp_path / "pci")
    text = cxl_sysfs.why_no_memdev("mem0", tmp_path / "devices")
    assert "0000:35:00.0" in text
    assert "modprobe cxl_pci" in text
    with pytest.raises(DriverMissing, match="modprobe cxl_pci"):
        memdev_at("0000:35:00.0", tmp_path / "devices")


def test_a_device_that_goes_while_it_is_read_is_left_out(tree: Path) -> None:
    (tree / "devices" / "mem9").symlink_to(tree / "gone")
    assert [info.name for info in bus_of(tree).scan().memdevs] == ["mem0"]


def test_names_are_in_the_order_of_their_numbers(tree: Path) -> None:
    for number in (10, 2):
        real = tree / "sys" / "pci0000:34" / f"0000:4{number % 10}:00.0" / f"mem{number}"
        put(real / "payload_max", "256")
        (tree / "devices" / f"mem{number}").symlink_to(real)
    names = [info.name for info in bus_of(tree).scan().memdevs]
    assert names == ["mem0", "mem2", "mem10"]


@pytest.mark.parametrize("spec", ["cxl:", "cxl:mem", "cxl:nvme0", "cxl:mem0/x", "cxl:0000:99:99.9"])
def test_a_spec_that_names_no_memory_device_is_refused(spec: str, world: RealWorld) -> None:
    with pytest.raises(Refused):
        Registry(World(reactor=world.reactor)).open_cxl(spec)


@pytest.mark.parametrize("odd", ["0x", "-1", "1_0", "(null)", "9" * 5000, "٣"])
def test_numbers_that_no_kernel_writes_are_those_that_are_absent(tmp_path: Path, odd: str) -> None:
    mem = tmp_path / "mem0"
    for name in ("serial", "payload_max", "label_storage_size", "ram/size", "numa_node"):
        put(mem / name, odd)
    info = cxl_sysfs.memdev_info(mem)
    assert (info.serial, info.payload_max_bytes, info.label_bytes) == (None, 256, 0)
    assert (info.volatile_bytes, info.numa_node) == (0, -1)
