"""SMBus through the kernel: QEMU's EEPROMs on the q35's own controller, and i2c-stub.

Ref: the kernel's drivers/i2c/busses/i2c-i801.c and i2c-stub.c; QEMU 7.2, hw/i2c/pm_smbus.c and
smbus_eeprom.c (eight EEPROMs of 256 bytes at 0x50 to 0x57, writable).
"""

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from firmware.board_hardware import Device, Hardware, Place, Segment
from firmware.events import EventLog
from firmware.sensors.eeprom import Eeprom, read_fru, write_fru
from firmware.sensors.monitor import SensorMonitor
from firmware.sensors.steps import At, BadAnswer, Steps, run_steps
from hal.errors import Absent, HalError, Unavailable
from hal.linux.smbus import LinuxSmbusSegment
from hal.linux.smbus_target import LinuxSmbusTarget
from hal.registry import Registry, World
from hal.smbus_ports import MuxStuck, SmbusEvent, SmbusEventKind, SmbusKind, SmbusTransfer
from protocol.fru import BoardInfo, Fru, FruField, ProductInfo
from tests.contract import test_smbus as contract
from tests.contract.results import Result, soon
from tests.contract.rigs import SmbusRig
from tests.contract.sensor_checks import ADDRESSES, CHECKS, Chip
from tests.contract.worlds import RealWorld
from tests.hil.case import Context, Evidence, case
from tests.hil.machines import CARD

_I2C: Final = Path("/sys/bus/i2c/devices")
_STUB: Final = "SMBus stub driver"
_STUB_ALL: Final = 0x0F7F_0000  # every SMBus command but the process calls
_EEPROMS: Final = tuple(range(0x50, 0x58))
_SMBUS_CLASS: Final = "0x0c0500"


@case(on=CARD, deadline_s=120)
def the_i801_is_scanned_and_its_eeproms_are_found(ctx: Context) -> Evidence:
    number, function = _i801(ctx)
    with _segment(number) as (world, segment):
        found = []
        for address in range(0x08, 0x78):
            transfer = SmbusTransfer(address=address, kind=SmbusKind.READ_BYTE)
            result: Result[bytes] = Result()
            segment.submit(transfer, soon(world), result)
            world.run_until(lambda result=result: result.came)  # type: ignore[misc]
            value = result.values[0]
            assert isinstance(value, bytes | Absent), f"{address:#04x}: {value!r}"
            if isinstance(value, bytes):
                found.append(address)
        assert set(_EEPROMS) <= set(found), [hex(address) for address in found]
        capabilities = segment.capabilities
    assert capabilities.driver == "i801_smbus", capabilities
    return Evidence(
        driver=capabilities.driver,
        device=f"{function} i2c-{number}",
        numbers={"found": " ".join(f"{address:02x}" for address in found)},
    )


@case(on=CARD, smoke=True, deadline_s=120)
def a_fru_is_written_to_an_eeprom_on_the_i801_and_a_wrong_checksum_is_told(
    ctx: Context,
) -> Evidence:
    number, function = _i801(ctx)
    fru = Fru(
        board=BoardInfo(
            mfg_minutes=15_000_000,
            manufacturer=FruField.of("Example Works"),
            product_name=FruField.of("PERIPHERAL CARD", packed=True),
            serial_number=FruField.of("B-0042"),
        ),
        product=ProductInfo(
            manufacturer=FruField.of("Example Works"), asset_tag=FruField.of("A-9")
        ),
    )
    with _segment(number) as (world, segment):
        driver = Eeprom(At(address=0x50), size_bytes=256, capabilities=segment.capabilities)
        before = _run(world, segment, driver.read(0, 256))
        try:
            _run(world, segment, write_fru(driver, fru))
            assert _run(world, segment, read_fru(driver)) == fru
            rotten = bytes([_run(world, segment, driver.read(20, 1))[0] ^ 0x40])
            _run(world, segment, driver.write(20, rotten))
            with pytest.raises(BadAnswer, match="checksum"):
                _run(world, segment, read_fru(driver))
        finally:
            _run(world, segment, driver.write(0, before))
        assert _run(world, segment, driver.read(0, 256)) == before
        transfers = segment.counters["transfers"]
    return Evidence(
        driver="i801_smbus",
        device=f"{function} i2c-{number}/0x50",
        numbers={"fru_bytes": len(fru.to_bytes()), "transfers": transfers},
    )


@case(on=CARD, smoke=True, deadline_s=120)
def the_contract_of_a_segment_holds_on_i2c_stub(ctx: Context) -> Evidence:
    with _stub(ctx, (0x41, 0x42)) as number:
        passed, skipped = _contract(number, address=0x41, other=0x42, block_command=0x30)
    return Evidence(
        driver="i2c_stub",
        device=f"i2c-{number}",
        numbers={"passed": passed, "skipped": ", ".join(skipped)},
    )


@case(on=CARD, deadline_s=120)
def the_contract_of_a_segment_holds_on_the_i801(ctx: Context) -> Evidence:
    number, function = _i801(ctx)
    with _segment(number) as (world, segment):
        drivers = [
            Eeprom(At(address=address), size_bytes=256, capabilities=segment.capabilities)
            for address in (0x50, 0x51)
        ]
        before = [_run(world, segment, driver.read(0, 64)) for driver in drivers]
    try:
        passed, skipped = _contract(number, address=0x50, other=0x51, scan=range(0x48, 0x52))
    finally:
        with _segment(number) as (world, segment):
            for driver, data in zip(drivers, before, strict=True):
                _run(world, segment, driver.write(0, data))
    return Evidence(
        driver="i801_smbus",
        device=f"{function} i2c-{number}/0x50",
        numbers={"passed": passed, "skipped": ", ".join(skipped)},
    )


@case(on=CARD, deadline_s=180)
def every_sensor_driver_reads_registers_that_change_underneath_on_i2c_stub(
    ctx: Context,
) -> Evidence:
    """The checks that the register models pass: TMP75, TMP1075, TMP464, INA226, PMBus, EMC2305,
    MAX31790, PCA9555, NVMe basic management, 24C02 with a FRU."""
    with _stub(ctx, tuple(ADDRESSES.values())) as number, _segment(number) as (world, segment):
        for part, check in CHECKS.items():
            at = At(address=ADDRESSES[part])
            check(
                Chip(
                    at=at,
                    capabilities=segment.capabilities,
                    poke=_poke(world, segment, at.address),
                    run=lambda steps: _run(world, segment, steps),
                )
            )
            ctx.log(f"{part} at {at} holds")
        transfers = segment.counters["transfers"]
    return Evidence(
        driver="i2c_stub",
        device=f"i2c-{number}",
        numbers={"parts": len(CHECKS), "transfers": transfers},
    )


@case(on=CARD)
def a_mux_that_keeps_its_channel_is_told_once_on_i2c_stub(ctx: Context) -> Evidence:
    """A register that reads 4 whatever is sent to it, as a broken PCA9548 does; then it is mended
    from outside."""
    with _stub(ctx, (0x41, 0x70)) as number, _segment(number) as (world, segment):
        events: list[SmbusEvent] = []
        segment.on_event(events.append)
        control = _poke(world, segment, 0x70)
        control(0x01, b"\x04")  # i2c-stub's pointer is then behind what was written
        control(0x00, b"\x04")
        result: Result[Any] = Result()
        segment.check_muxes([((), 0x70)], soon(world), result)
        assert isinstance(result.error(world), MuxStuck)
        front = At(address=0x41)
        behind = At(address=0x41, mux=((0x71, 1),))
        for _ in range(3):
            _run(world, segment, front.read_byte(0x10))
            with pytest.raises(MuxStuck):
                _run(world, segment, behind.read_byte(0x10))
        assert [event.kind for event in events] == [SmbusEventKind.MUX_STUCK], events
        with pytest.raises(MuxStuck):  # our own way to it is closed with all the others
            _run(world, segment, At(address=0x71, mux=((0x72, 0),)).read_byte(0))
        control(0x00, b"\x00")
        _run(world, segment, front.read_byte(0x10))
        world.run_until(lambda: len(events) == 2)
        assert events[-1].kind is SmbusEventKind.MUX_FREE
    return Evidence(driver="i2c_stub", device=f"i2c-{number}/0x70", numbers={"events": 2})


@case(on=CARD)
def adapters_without_target_mode_say_that_they_carry_no_mctp(ctx: Context) -> Evidence:
    number, function = _i801(ctx)
    told = []
    with _stub(ctx, (0x41,)) as stub:
        for bus in (number, stub):
            with _segment(bus) as (_world, segment):
                try:
                    LinuxSmbusTarget(bus, 0x12, segment.capabilities)
                except Unavailable as exc:
                    told.append(str(exc))
    assert len(told) == 2, told
    assert all("no MCTP over SMBus" in text for text in told), told
    return Evidence(
        driver="i801_smbus, i2c_stub",
        device=f"{function} i2c-{number}, i2c-{stub}",
        numbers={"told": told[0]},
    )


@case(on=CARD)
def an_absent_sensor_is_told_once_by_the_monitor_on_i2c_stub(ctx: Context) -> Evidence:
    """A board of two TMP75, of which one is not there."""
    with _stub(ctx, (0x48,)) as number:
        segments = (Segment(id="s0", bus=f"i2c:{number}", clock_khz=100),)
        limits = {"channel": 0, "temp_high_mdegc": 70_000, "temp_critical_mdegc": 90_000}

        def part(name: str, role: str, kind: str, address: int, numbers: Any) -> Device:
            place = Place(segment="s0", muxes=(), address=address)
            return Device(id=name, role=role, part=kind, place=place, numbers=numbers)

        devices = (
            part("here", "temp", "tmp75", 0x48, limits),
            part("gone", "temp", "tmp75", 0x49, limits),
        )
        world = RealWorld()
        events = EventLog(world.reactor, lambda: 0)
        registry = Registry(World(reactor=world.reactor))
        monitor = SensorMonitor(
            world.reactor,
            registry.open_smbus,
            Hardware(segments=segments, devices=devices),
            events,
        )
        try:
            monitor.start()
            world.run_until(lambda: len(events.since(0)) > 0, limit_s=40)
            world.run_for(3)
            codes = [str(event.code) for event in events.since(0)]
            assert codes == ["sensor.absent"], codes
            assert events.since(0)[0].data["device"] == "gone"
            assert monitor.readings("here") is not None
            polls = monitor.counters["polls"]
        finally:
            monitor.close()
            world.close()
    return Evidence(
        driver="i2c_stub", device=f"i2c-{number}/0x49", numbers={"polls": polls, "events": 1}
    )


# --- adapters ---


def _i801(ctx: Context) -> tuple[int, str]:
    """The number of the controller's bus, and its PCI function."""
    ctx.modprobe("i2c-dev")
    ctx.modprobe("i2c-i801")

    def look() -> list[tuple[int, str]]:
        return [
            (int(path.name[4:]), path.resolve().parent.name)
            for path in _I2C.glob("i2c-*")
            if (path / "name").read_text().startswith("SMBus I801")
        ]

    ctx.wait(lambda: look() and Path(f"/dev/i2c-{look()[0][0]}").exists(), "the i801's bus")
    return look()[0]


@contextlib.contextmanager
def _stub(ctx: Context, addresses: tuple[int, ...]) -> Iterator[int]:
    """A bus of registers that keep what is written."""
    ctx.modprobe("i2c-dev")
    chips = ",".join(f"{address:#04x}" for address in addresses)
    ctx.modprobe("i2c-stub", f"chip_addr={chips}", f"functionality={_STUB_ALL:#x}")

    def look() -> list[int]:
        return [
            int(path.name[4:])
            for path in _I2C.glob("i2c-*")
            if (path / "name").read_text().strip() == _STUB
        ]

    try:
        ctx.wait(lambda: look() and Path(f"/dev/i2c-{look()[0]}").exists(), "i2c-stub's bus")
        yield look()[0]
    finally:
        subprocess.run(["modprobe", "-r", "i2c-stub"], check=True, timeout=30)


@contextlib.contextmanager
def _segment(number: int) -> Iterator[tuple[RealWorld, LinuxSmbusSegment]]:
    world = RealWorld()
    segment = LinuxSmbusSegment(number, world.reactor)
    try:
        yield world, segment
    finally:
        segment.close()
        world.close()


def _run(world: RealWorld, segment: LinuxSmbusSegment, steps: Steps[Any]) -> Any:
    found: list[Any] = []
    now_ns = world.reactor.now_ns()
    run_steps(segment, now_ns, steps, now_ns + 30_000_000_000, found.append)
    world.run_until(lambda: bool(found), limit_s=31)
    if isinstance(found[0], HalError):
        raise found[0]
    return found[0]


def _poke(world: RealWorld, segment: LinuxSmbusSegment, address: int) -> Callable[..., None]:
    """Set a register as the world would: by the adapter that also reads it."""

    def poke(register: int, data: bytes, *, block: bool = False) -> None:
        if block:
            kind = SmbusKind.WRITE_BLOCK
        else:
            kind = SmbusKind.WRITE_WORD if len(data) == 2 else SmbusKind.WRITE_BYTE
        result: Result[bytes] = Result()
        transfer = SmbusTransfer(address=address, kind=kind, command=register, data=data)
        segment.submit(transfer, soon(world), result)
        result.wait(world)

    return poke


def _contract(number: int, **more: Any) -> tuple[int, list[str]]:
    """Every test of the suite on this bus: how many held, and what was skipped, and why."""
    passed, skipped = 0, []
    for name, test in sorted(vars(contract).items()):
        if not name.startswith("test_") or test.__code__.co_argcount != 2:
            continue
        with _segment(number) as (world, segment):
            rig = SmbusRig(segment=segment, poke=_poke(world, segment, more["address"]), **more)
            try:
                test(rig, world)
            except pytest.skip.Exception as exc:
                skipped.append(f"{name[5:]} ({exc.msg})")
                continue
            except BaseException as exc:
                exc.add_note(f"in {name}")
                raise
            passed += 1
    assert passed >= 12, f"only {passed} tests of the suite ran: {skipped}"
    return passed, skipped
