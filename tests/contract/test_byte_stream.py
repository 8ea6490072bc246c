"""`hal.ports.ByteStream`: bytes in order, partial writes, hang-up."""

import hashlib

import pytest

from hal.errors import LinkDown
from hal.ports import READ_LIMIT_BYTES, ByteStream, Event
from tests.contract.results import need
from tests.contract.rigs import ByteStreamRig, World

PORT = "byte_stream"
FLOOD_LIMIT_BYTES = 64 << 20  # more than any line may buffer


def send_all(world: World, stream: ByteStream, data: bytes, sink: ByteStream) -> bytes:
    """Send with back-pressure and collect at the far end until all has come."""
    left, got = bytearray(data), bytearray()

    def turn() -> bool:
        if left:
            del left[: stream.write(left)]
        got.extend(sink.read())
        return len(got) >= len(data)

    world.run_until(turn, limit_s=30)
    return bytes(got)


def test_all_256_byte_values_pass_both_ways(rig: ByteStreamRig, world: World) -> None:
    values = bytes(range(256))
    assert send_all(world, rig.a, values, rig.b) == values
    assert send_all(world, rig.b, values, rig.a) == values


def test_bytes_come_in_the_order_in_which_they_were_written(
    rig: ByteStreamRig, world: World
) -> None:
    data = b"".join(hashlib.sha256(bytes([i])).digest() for i in range(200)) * 2
    assert send_all(world, rig.a, data, rig.b) == data


def test_a_read_with_nothing_there_is_empty(rig: ByteStreamRig) -> None:
    assert rig.a.read() == b""
    assert rig.b.read() == b""


def test_one_read_gives_at_most_4_kib(rig: ByteStreamRig, world: World) -> None:
    left = bytearray(3 * READ_LIMIT_BYTES)
    sizes: list[int] = []

    def turn() -> bool:
        if left:
            del left[: rig.a.write(left)]
        sizes.append(len(rig.b.read()))
        return sum(sizes) == 3 * READ_LIMIT_BYTES

    world.run_until(turn, limit_s=30)
    assert max(sizes) <= READ_LIMIT_BYTES


def test_a_write_that_nobody_reads_ends_in_0_and_nothing_taken_is_lost(
    rig: ByteStreamRig, world: World
) -> None:
    piece = bytes(range(251)) * 16
    sent = bytearray()
    refused = 0
    while refused < 20 and len(sent) < FLOOD_LIMIT_BYTES:
        taken = rig.a.write(piece)
        assert 0 <= taken <= len(piece)
        sent += piece[:taken]
        refused = refused + 1 if taken == 0 else 0
        if taken == 0:
            world.run_for(0.005)
    assert refused >= 20, "the line took 64 MiB that nobody read"
    got = bytearray()

    def drained() -> bool:
        got.extend(rig.b.read())
        return len(got) >= len(sent)

    world.run_until(drained, limit_s=30)
    assert bytes(got) == bytes(sent)


def test_an_empty_write_takes_nothing(rig: ByteStreamRig) -> None:
    assert rig.a.write(b"") == 0


def test_every_buffer_type_is_taken(rig: ByteStreamRig, world: World) -> None:
    for data in (b"one", bytearray(b"two"), memoryview(b"xthreex")[1:6]):
        assert send_all(world, rig.a, data, rig.b) == bytes(data)


def test_the_handle_is_ready_when_bytes_are_there_and_not_before(
    rig: ByteStreamRig, world: World
) -> None:
    seen: list[Event] = []
    got = bytearray()

    def ready(events: Event) -> None:
        seen.append(events)
        got.extend(rig.b.read())

    world.reactor.watch(rig.b.handle, Event.READ, ready)
    world.run_for(0.02)
    assert seen == []
    assert rig.a.write(b"ping") == 4
    world.run_until(lambda: bytes(got) == b"ping")
    assert all(Event.READ in events for events in seen)
    world.reactor.unwatch(rig.b.handle)


def test_a_busy_line_tells_by_its_handle_when_it_takes_bytes_again(
    rig: ByteStreamRig, world: World
) -> None:
    piece = bytes(4096)
    while rig.a.write(piece):
        pass
    woken: list[Event] = []

    def ready(events: Event) -> None:
        woken.append(events)
        world.reactor.unwatch(rig.a.handle)

    world.reactor.watch(rig.a.handle, Event.WRITE, ready)

    def drained() -> bool:
        rig.b.read()
        return bool(woken)

    world.run_until(drained, limit_s=30)
    assert Event.WRITE in woken[0]
    assert rig.a.write(b"x") == 1


def test_a_hang_up_raises_link_down_at_both_ends(rig: ByteStreamRig, world: World) -> None:
    need(rig.hang_up, "hang the line up")()

    def down(stream: ByteStream) -> bool:
        try:
            stream.read()
        except LinkDown:
            return True
        return False

    world.run_until(lambda: down(rig.a))
    world.run_until(lambda: down(rig.b))
    for stream in (rig.a, rig.b):
        with pytest.raises(LinkDown):
            stream.write(b"x")


def test_a_hang_up_makes_the_handle_ready(rig: ByteStreamRig, world: World) -> None:
    hang_up = need(rig.hang_up, "hang the line up")
    seen: list[Event] = []

    def ready(events: Event) -> None:
        seen.append(events)
        world.reactor.unwatch(rig.a.handle)

    world.reactor.watch(rig.a.handle, Event.READ, ready)
    hang_up()
    world.run_until(lambda: bool(seen))


def test_closing_twice_is_harmless(rig: ByteStreamRig) -> None:
    rig.a.close()
    rig.a.close()
