"""`hal.smbus_ports.SmbusSegment`: transfers in order, errors by their kind, muxes deselected.

Written so that it can also be run where pytest is not in charge (in a virtual machine, on real
drivers): each test takes a rig and a world, and leaves the devices as they were.
"""

import pytest

from hal.errors import Absent, DeadlinePassed, HalError, Refused, Unavailable
from hal.smbus_ports import QUEUE_LIMIT, SmbusFunctions, SmbusKind, SmbusTransfer
from tests.contract.results import Result, need, soon
from tests.contract.rigs import SmbusRig, World

PORT = "smbus"
WORD, BYTE = 0x11, 0x19  # registers


def submit(world: World, rig: SmbusRig, transfer: SmbusTransfer) -> Result[bytes]:
    result: Result[bytes] = Result()
    rig.segment.submit(transfer, soon(world), result)
    assert not result.came, "a submit completes through the mailbox, never inside the call"
    return result


def ask(world: World, rig: SmbusRig, kind: SmbusKind, command: int = 0, **more: object) -> bytes:
    fields = {"address": rig.address} | more
    transfer = SmbusTransfer(kind=kind, command=command, **fields)  # type: ignore[arg-type]
    return submit(world, rig, transfer).wait(world)


def able(rig: SmbusRig, transfer: SmbusTransfer) -> None:
    """Skips where the adapter can't, by its own word."""
    missing = rig.segment.capabilities.missing(transfer)
    need(None if missing else True, f"do that: {missing}")


def test_a_word_comes_in_the_order_of_the_wire(rig: SmbusRig, world: World) -> None:
    rig.poke(WORD, b"\x12\x34")
    assert ask(world, rig, SmbusKind.READ_WORD, WORD) == b"\x12\x34"


def test_a_register_that_changes_underneath_is_seen(rig: SmbusRig, world: World) -> None:
    for value in (b"\x01\x00", b"\xff\x7f", b"\x00\x80"):
        rig.poke(WORD, value)
        assert ask(world, rig, SmbusKind.READ_WORD, WORD) == value


def test_what_was_written_reads_back(rig: SmbusRig, world: World) -> None:
    assert ask(world, rig, SmbusKind.WRITE_BYTE, BYTE, data=b"\xa5") == b""
    assert ask(world, rig, SmbusKind.READ_BYTE, BYTE) == b"\xa5"
    assert ask(world, rig, SmbusKind.WRITE_WORD, WORD, data=b"\x0f\xf0") == b""
    assert ask(world, rig, SmbusKind.READ_WORD, WORD) == b"\x0f\xf0"


def test_nobody_at_an_address_is_absent_and_the_bus_goes_on(rig: SmbusRig, world: World) -> None:
    transfer = SmbusTransfer(address=rig.absent, kind=SmbusKind.READ_BYTE, command=BYTE)
    error = submit(world, rig, transfer).error(world)
    assert isinstance(error, Absent)
    assert f"{rig.absent:#04x}" in str(error)
    rig.poke(WORD, b"\x55\xaa")
    assert ask(world, rig, SmbusKind.READ_WORD, WORD) == b"\x55\xaa"


def test_a_scan_finds_those_who_are_there_and_nobody_else(rig: SmbusRig, world: World) -> None:
    found = set()
    for address in rig.scan:
        transfer = SmbusTransfer(address=address, kind=SmbusKind.READ_BYTE, command=BYTE)
        result = submit(world, rig, transfer)
        world.run_until(lambda result=result: result.came)  # type: ignore[misc]
        if isinstance(result.values[0], bytes):
            found.add(address)
    assert found == {rig.address, rig.other}


def test_transfers_to_one_device_take_effect_in_order(rig: SmbusRig, world: World) -> None:
    write = [
        submit(world, rig, SmbusTransfer(
            address=rig.address, kind=SmbusKind.WRITE_BYTE, command=BYTE, data=bytes([value]),
        ))
        for value in range(10)
    ]  # fmt: skip
    last = submit(
        world, rig, SmbusTransfer(address=rig.address, kind=SmbusKind.READ_BYTE, command=BYTE)
    )
    assert last.wait(world) == b"\x09"
    assert all(result.came for result in write)


def test_a_device_that_wants_a_pause_does_not_hold_up_the_others(
    rig: SmbusRig, world: World
) -> None:
    order: list[str] = []

    def put(name: str, address: int, gap_us: int) -> None:
        def done(value: bytes | HalError) -> None:
            assert isinstance(value, bytes), value
            order.append(name)

        transfer = SmbusTransfer(
            address=address, kind=SmbusKind.READ_BYTE, command=BYTE, gap_us=gap_us
        )
        rig.segment.submit(transfer, soon(world), done)

    put("slow 1", rig.address, 100_000)
    put("slow 2", rig.address, 0)
    put("other", rig.other, 0)
    world.run_until(lambda: len(order) == 3)
    assert order == ["slow 1", "other", "slow 2"]


def test_a_deadline_that_has_passed_is_said(rig: SmbusRig, world: World) -> None:
    result: Result[bytes] = Result()
    transfer = SmbusTransfer(address=rig.address, kind=SmbusKind.READ_BYTE, command=BYTE)
    rig.segment.submit(transfer, world.reactor.now_ns() - 1, result)
    assert isinstance(result.error(world), DeadlinePassed)


def test_more_than_the_queue_holds_are_turned_away_and_all_complete_once(
    rig: SmbusRig, world: World
) -> None:
    transfer = SmbusTransfer(  # the pause after each makes the others wait, however slow we are
        address=rig.address, kind=SmbusKind.READ_BYTE, command=BYTE, gap_us=1_000_000
    )
    results: list[Result[bytes]] = []
    for _ in range(QUEUE_LIMIT + 50):
        results.append(Result())
        rig.segment.submit(transfer, soon(world, 600), results[-1])

    def full() -> list[str]:
        values = [result.values[0] for result in results if result.came]
        return [str(value) for value in values if isinstance(value, Unavailable)]

    world.run_until(lambda: bool(full()), limit_s=60)
    assert len(full()) <= 50
    assert all("full" in text for text in full())
    rig.segment.close()
    world.run_until(lambda: all(result.came for result in results), limit_s=60)


def test_a_block_goes_out_and_comes_back(rig: SmbusRig, world: World) -> None:
    command = need(rig.block_command, "take a block")
    able(rig, SmbusTransfer(address=rig.address, kind=SmbusKind.READ_BLOCK, command=command))
    for data in (b"x", bytes(range(32))):
        ask(world, rig, SmbusKind.WRITE_BLOCK, command, data=data)
        assert ask(world, rig, SmbusKind.READ_BLOCK, command) == data


def test_a_block_of_more_than_32_bytes_goes_through_plain_i2c_or_is_refused_with_the_reason(
    rig: SmbusRig, world: World
) -> None:
    command = rig.long_command or 0x31
    transfer = SmbusTransfer(
        address=rig.address, kind=SmbusKind.READ_BLOCK, command=command, read_bytes=64
    )
    if SmbusFunctions.I2C not in rig.segment.capabilities.functions:
        error = submit(world, rig, transfer).error(world)
        assert isinstance(error, Unavailable)
        assert "32" in str(error)
        assert rig.segment.capabilities.adapter in str(error)
    elif rig.long_command is not None:
        assert submit(world, rig, transfer).wait(world) == bytes(range(60))


def test_plain_i2c_works_or_is_refused_with_the_reason(rig: SmbusRig, world: World) -> None:
    rig.poke(WORD, b"\x21\x43")
    transfer = SmbusTransfer(
        address=rig.address, kind=SmbusKind.RAW, data=bytes([WORD]), read_bytes=2
    )
    result = submit(world, rig, transfer)
    if SmbusFunctions.I2C in rig.segment.capabilities.functions:
        assert result.wait(world) == b"\x21\x43"
    else:
        error = result.error(world)
        assert isinstance(error, Unavailable)
        assert "plain I2C" in str(error)


def test_packet_error_codes_are_made_or_refused_with_the_reason(
    rig: SmbusRig, world: World
) -> None:
    rig.poke(WORD, b"\x0a\x0b")
    transfer = SmbusTransfer(address=rig.address, kind=SmbusKind.READ_WORD, command=WORD, pec=True)
    result = submit(world, rig, transfer)
    if rig.segment.capabilities.missing(transfer):
        error = result.error(world)
        assert isinstance(error, Unavailable)
        assert "packet error code" in str(error)
    else:
        assert result.wait(world) == b"\x0a\x0b"


def test_a_bus_that_is_free_is_freed_with_success(rig: SmbusRig, world: World) -> None:
    result: Result[None] = Result()
    rig.segment.recover(soon(world), result)
    assert result.wait(world) is None
    rig.poke(WORD, b"\x77\x66")
    assert ask(world, rig, SmbusKind.READ_WORD, WORD) == b"\x77\x66"


def test_a_mux_that_is_not_there_is_left_out_when_muxes_are_looked_at(
    rig: SmbusRig, world: World
) -> None:
    result: Result[object] = Result()
    rig.segment.check_muxes([((), rig.absent)], soon(world), result)
    assert result.wait(world) == []


def test_a_transfer_through_a_mux_that_is_not_there_names_the_mux(
    rig: SmbusRig, world: World
) -> None:
    transfer = SmbusTransfer(
        address=rig.other, kind=SmbusKind.READ_BYTE, command=BYTE, mux=((rig.absent, 1),)
    )
    error = submit(world, rig, transfer).error(world)
    assert isinstance(error, Absent)
    assert f"mux {rig.absent:#04x}" in str(error)
    assert ask(world, rig, SmbusKind.READ_BYTE, BYTE, address=rig.other) is not None


def test_what_is_behind_a_mux_is_reached_through_it_and_only_so(
    rig: SmbusRig, world: World
) -> None:
    mux, behind = need(rig.mux, "have a mux"), need(rig.behind, "have a mux")
    through = ((mux, 2),)
    ask(world, rig, SmbusKind.WRITE_BYTE, BYTE, data=b"\x42", address=behind, mux=through)
    assert ask(world, rig, SmbusKind.READ_BYTE, BYTE, address=behind, mux=through) == b"\x42"
    direct = SmbusTransfer(address=behind, kind=SmbusKind.READ_BYTE, command=BYTE)
    assert isinstance(submit(world, rig, direct).error(world), Absent)
    wrong = SmbusTransfer(address=behind, kind=SmbusKind.READ_BYTE, command=BYTE, mux=((mux, 3),))
    assert isinstance(submit(world, rig, wrong).error(world), Absent)
    assert isinstance(submit(world, rig, direct).error(world), Absent), "left selected"


def test_after_close_transfers_complete_with_unavailable(rig: SmbusRig, world: World) -> None:
    transfer = SmbusTransfer(address=rig.address, kind=SmbusKind.READ_BYTE, command=BYTE)
    before: list[Result[bytes]] = [Result() for _ in range(5)]
    for result in before:
        rig.segment.submit(transfer, soon(world), result)
    rig.segment.close()
    rig.segment.close()
    after = submit(world, rig, transfer)
    assert isinstance(after.error(world), Unavailable)
    world.run_until(lambda: all(result.came for result in before))


@pytest.mark.parametrize(
    "fields",
    [
        {"address": 0x07, "kind": SmbusKind.READ_BYTE},
        {"address": 0x78, "kind": SmbusKind.READ_BYTE},
        {"address": 0x40, "kind": SmbusKind.WRITE_BYTE, "data": b""},
        {"address": 0x40, "kind": SmbusKind.WRITE_WORD, "data": b"x"},
        {"address": 0x40, "kind": SmbusKind.WRITE_BLOCK, "data": bytes(256)},
        {"address": 0x40, "kind": SmbusKind.READ_BYTE, "command": 256},
        {"address": 0x40, "kind": SmbusKind.READ_WORD, "read_bytes": 2},
        {"address": 0x40, "kind": SmbusKind.RAW},
        {"address": 0x40, "kind": SmbusKind.QUICK, "pec": True},
        {"address": 0x40, "kind": SmbusKind.READ_BYTE, "mux": ((0x70, 8),)},
        {"address": 0x40, "kind": SmbusKind.READ_BYTE, "mux": ((0x70, 0),) * 5},
        {"address": 0x40, "kind": SmbusKind.READ_BYTE, "gap_us": 1_000_001},
    ],
)
def test_what_could_not_be_a_transfer_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(Refused):
        SmbusTransfer(**fields)  # type: ignore[arg-type]
