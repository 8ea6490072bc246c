"""CXL in a virtual machine: QEMU's type 3 device behind its switch, and the kernel's drivers.

The contract suite of the port is run here against the real mailbox. QEMU 7.2's device has no
health and no events, and Linux 6.1 no call for events: both are the mock's (tests/contract).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from hal.cxl_ports import CxlCommand, CxlReply, Disabled, DriverMissing, NotOffered
from hal.errors import Absent, HalError
from hal.linux.cxl_memdev import LinuxCxlMemdev
from hal.linux.cxl_sysfs import DEVICES, LinuxCxlBus, memdev_at
from hal.registry import Registry
from hal.registry import World as Openers
from protocol.cxl.codes import Opcode, ReturnCode
from protocol.cxl.logs import CEL_UUID, CommandEffects, GetLogRequest
from protocol.cxl.memory import GetLsaRequest, IdentifyMemoryDevice, PartitionInfo, SetLsaRequest
from tests.contract import test_cxl, test_cxl_bus
from tests.contract.backends_cxl import linux_bus_rig, linux_rig
from tests.contract.results import Result, soon
from tests.contract.worlds import RealWorld
from tests.hil.case import Context, Evidence, case
from tests.hil.machines import CARD

DEVICE: Final = "8086:0d93"


def prepare(ctx: Context) -> str:
    """Load the drivers; the address of the memory device. Its name is another one whenever its
    driver is bound again. cxl_pmem is kept out: it would take the labels for itself."""
    for module in ("cxl_acpi", "cxl_pci", "cxl_mem"):
        ctx.modprobe(module)
    address = ctx.pci(DEVICE)

    def usable() -> bool:
        try:
            name = memdev_at(address)
        except DriverMissing:
            return False
        return Path("/dev/cxl", name).exists() and (DEVICES / name / "driver").exists()

    ctx.wait(usable, f"a device file for {address}, and cxl_mem bound to it")
    assert ctx.driver(address) == "cxl_pci"
    return address


class Mailbox:
    """A memory device of this guest, asked one command after another."""

    def __init__(self, address: str) -> None:
        self.world = RealWorld()
        opened = Registry(Openers(reactor=self.world.reactor)).open_cxl(f"cxl:{address}")
        assert isinstance(opened, LinuxCxlMemdev)
        self.port = opened

    def ask(self, opcode: int, payload: bytes = b"") -> CxlReply:
        result: Result[CxlReply] = Result()
        command = CxlCommand(opcode=opcode, payload=payload)
        self.port.submit(command, soon(self.world), result)
        return result.wait(self.world)

    def good(self, opcode: int, payload: bytes = b"") -> bytes:
        reply = self.ask(opcode, payload)
        assert reply.return_code == ReturnCode.SUCCESS, f"{opcode:04X}h: {reply}"
        return reply.payload

    def close(self) -> None:
        self.port.close()
        self.world.close()


@case(on=CARD, smoke=True)
def a_cxl_memory_device_identifies_itself(ctx: Context) -> Evidence:
    address = prepare(ctx)
    mailbox = Mailbox(address)
    found = IdentifyMemoryDevice.from_bytes(mailbox.good(Opcode.IDENTIFY_MEMORY_DEVICE))
    parts = PartitionInfo.from_bytes(mailbox.good(Opcode.GET_PARTITION_INFO))
    assert (found.total_bytes, found.label_bytes) == (256 << 20, 1 << 20)
    assert (parts.active_volatile_units, parts.active_persistent_units) == (0, 1)
    assert mailbox.port.info.address == address
    payload_max = mailbox.port.info.payload_max_bytes
    mailbox.close()
    return Evidence(
        driver="cxl_pci, cxl_mem",
        device=f"{memdev_at(address)} at {address}",
        numbers={
            "total_bytes": found.total_bytes,
            "label_bytes": found.label_bytes,
            "payload_max_bytes": payload_max,
            "firmware": found.firmware_text,
        },
    )


@case(on=CARD)
def cxl_labels_are_written_read_back_and_restored(ctx: Context) -> Evidence:
    """The whole label area, in pieces as large as the mailbox takes."""
    address = prepare(ctx)
    mailbox = Mailbox(address)
    piece = mailbox.port.info.payload_max_bytes - 8  # behind offset and reserved bytes
    size = min(mailbox.port.info.label_bytes, 64 * 1024)

    def read_all() -> bytes:
        return b"".join(
            mailbox.good(
                Opcode.GET_LSA,
                GetLsaRequest(offset=at, length=min(piece, size - at)).to_bytes(),
            )
            for at in range(0, size, piece)
        )

    def write_all(data: bytes) -> None:
        for at in range(0, size, piece):
            request = SetLsaRequest(offset=at, data=data[at : at + piece])
            mailbox.good(Opcode.SET_LSA, request.to_bytes())

    before = read_all()
    pattern = b"".join(number.to_bytes(4, "little") for number in range(size // 4))
    write_all(pattern)
    after = read_all()
    write_all(before)
    restored = read_all()
    mailbox.close()
    assert after == pattern
    assert restored == before
    return Evidence(
        driver="cxl_pci",
        device=f"{memdev_at(address)} at {address}",
        numbers={"bytes": size, "piece": piece},
    )


@case(on=CARD)
def the_log_of_a_cxl_devices_commands_tells_what_it_has(ctx: Context) -> Evidence:
    address = prepare(ctx)
    mailbox = Mailbox(address)
    data = mailbox.good(Opcode.GET_LOG, GetLogRequest(uuid=CEL_UUID, offset=0, length=4).to_bytes())
    assert len(data) == 4
    logs = mailbox.good(Opcode.GET_SUPPORTED_LOGS)
    size = int.from_bytes(logs[24:28], "little")
    effects = CommandEffects.from_bytes(
        mailbox.good(Opcode.GET_LOG, GetLogRequest(uuid=CEL_UUID, offset=0, length=size).to_bytes())
    )
    has = {entry.opcode for entry in effects.commands}
    assert {Opcode.IDENTIFY_MEMORY_DEVICE, Opcode.GET_LSA, Opcode.SET_LSA} <= has
    result: Result[CxlReply] = Result()
    mailbox.port.submit(CxlCommand(opcode=Opcode.GET_HEALTH_INFO), soon(mailbox.world), result)
    health = result.error(mailbox.world)
    assert isinstance(health, Disabled), health
    result = Result()
    mailbox.port.submit(
        CxlCommand(opcode=Opcode.GET_EVENT_RECORDS, payload=b"\0"), soon(mailbox.world), result
    )
    events = result.error(mailbox.world)
    assert isinstance(events, NotOffered), events
    mailbox.close()
    return Evidence(
        driver="cxl_pci",
        device=f"{memdev_at(address)} at {address}",
        numbers={
            "commands": len(has),
            "opcodes": " ".join(f"{opcode:04x}" for opcode in sorted(has)),
            "health": str(health),
            "events": str(events),
        },
    )


@case(on=CARD)
def the_cxl_topology_goes_through_a_switch(ctx: Context) -> Evidence:
    """Root, host bridge, switch, endpoint; decoders of each; no region until one is made."""
    address = prepare(ctx)
    ctx.modprobe("cxl_port")
    bus = LinuxCxlBus()
    found = bus.scan()
    ports = {port.name: port for port in found.ports}
    [end] = [port for port in found.ports if port.uport == memdev_at(address)]
    chain = [end.name]
    at = end
    while at.parent:
        at = ports[at.parent]
        chain.append(at.name)
    assert len(chain) == 4, f"endpoint, switch, bridge, root: {chain}"
    switch = ports[chain[1]]
    assert ctx.pci("19e5:a128") == switch.uport, "QEMU's cxl-upstream"
    kinds = {decoder.kind for decoder in found.decoders}
    assert kinds == {"root", "switch", "endpoint"}
    [window] = [d for d in found.decoders if d.kind == "root"]
    assert window.size_bytes == 4 << 30
    why = ""
    try:
        bus.map_region("region0", "a")
    except Absent as exc:
        why = str(exc)
    assert "there are: none" in why
    return Evidence(
        driver="cxl_acpi, cxl_port, cxl_mem",
        device=f"{memdev_at(address)} at {address}",
        numbers={"chain": " ".join(chain), "decoders": len(found.decoders), "region": why},
    )


@case(on=CARD, deadline_s=120)
def the_contract_of_a_cxl_device_holds_on_the_real_one(ctx: Context) -> Evidence:
    address = prepare(ctx)
    ran, skipped = [], []
    for name, test in _tests(test_cxl):
        world = RealWorld()
        rig = linux_rig(LinuxCxlMemdev(memdev_at(address), world.reactor))
        try:
            test(rig, world)
            ran.append(name)
        except pytest.skip.Exception:
            skipped.append(name)
        finally:
            rig.close()
            world.close()
    for name, test in _tests(test_cxl_bus):
        world = RealWorld()
        try:
            test(linux_bus_rig(LinuxCxlBus(), memdev_at(address)), world)
            ran.append(name)
        except pytest.skip.Exception:
            skipped.append(name)
        finally:
            world.close()
    assert len(ran) >= 17, (ran, skipped)
    return Evidence(
        driver="cxl_pci, cxl_mem",
        device=f"{memdev_at(address)} at {address}",
        numbers={"passed": len(ran), "skipped": " ".join(skipped)},
    )


@case(on=CARD)
def a_cxl_device_without_its_driver_says_what_is_missing(ctx: Context) -> Evidence:
    """Unbound under an open port: the port's device is gone. Then: there is no file to open."""
    address = prepare(ctx)
    mailbox = Mailbox(address)
    name = mailbox.port.info.name
    unbind = Path("/sys/bus/pci/drivers/cxl_pci/unbind")
    unbind.write_text(address)
    try:
        gone: HalError | None = None
        try:
            mailbox.good(Opcode.IDENTIFY_MEMORY_DEVICE)
        except HalError as exc:
            gone = exc
        ctx.wait(lambda: not Path("/dev/cxl", name).exists(), "the device file to go")
        missing = ""
        try:
            LinuxCxlMemdev(name, mailbox.world.reactor)
        except DriverMissing as exc:
            missing = str(exc)
    finally:
        mailbox.close()
        Path("/sys/bus/pci/drivers/cxl_pci/bind").write_text(address)
    assert gone is not None, "the command went through a device that was unbound"
    assert address in missing, missing
    assert "cxl_pci" in missing
    prepare(ctx)
    return Evidence(
        driver="cxl_pci",
        device=address,
        numbers={"open_port": f"{type(gone).__name__}: {gone}", "no_file": missing},
    )


def _tests(module: Any) -> list[tuple[str, Callable[..., None]]]:
    return [(name, call) for name, call in vars(module).items() if name.startswith("test_")]
