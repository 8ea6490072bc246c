"""`hal.ports.Window`: bounds, alignment, and what one side publishes the other acquires."""

import pytest

from hal.errors import Refused
from tests.contract.rigs import WindowRig

PORT = "window"


def test_what_one_side_writes_the_other_reads_and_the_other_way_round(rig: WindowRig) -> None:
    rig.a.write(64, b"from a")
    rig.b.write(64, b"from b")
    assert bytes(rig.b.read(64, 6)) == b"from a"
    assert bytes(rig.a.read(64, 6)) == b"from b"


def test_the_halves_have_the_same_size_seen_from_both_sides(rig: WindowRig) -> None:
    assert rig.a.tx_bytes == rig.b.rx_bytes > 0
    assert rig.b.tx_bytes == rig.a.rx_bytes > 0


def test_own_writes_do_not_show_in_own_rx(rig: WindowRig) -> None:
    rig.a.write(128, b"mine")
    assert bytes(rig.a.read(128, 4)) == bytes(4)


def test_a_published_word_is_acquired_little_endian(rig: WindowRig) -> None:
    rig.a.publish(0, 0x0102_0304)
    assert rig.b.acquire(0) == 0x0102_0304
    assert bytes(rig.b.read(0, 4)) == b"\x04\x03\x02\x01"
    rig.a.write(4, b"\xff\xff\xff\xff")
    assert rig.b.acquire(4) == 0xFFFF_FFFF


def test_data_written_before_a_publish_is_there_after_the_acquire(rig: WindowRig) -> None:
    for turn in range(1, 200):
        rig.a.write(4096, turn.to_bytes(4, "little") * 256)
        rig.a.publish(0x80, turn)
        assert rig.b.acquire(0x80) == turn
        assert bytes(rig.b.read(4096, 1024)) == turn.to_bytes(4, "little") * 256


def test_the_view_is_read_only_and_not_a_copy(rig: WindowRig) -> None:
    view = rig.b.read(256, 4)
    assert view.readonly
    rig.a.write(256, b"late")
    assert bytes(view) == b"late"


def test_the_last_byte_and_the_last_word_can_be_reached(rig: WindowRig) -> None:
    size = rig.a.tx_bytes
    rig.a.write(size - 1, b"z")
    assert bytes(rig.b.read(size - 1, 1)) == b"z"
    rig.a.publish(size - 4, 7)
    assert rig.b.acquire(size - 4) == 7


def test_a_write_may_fill_the_whole_half(rig: WindowRig) -> None:
    data = bytes(range(256)) * (rig.a.tx_bytes // 256)
    rig.a.write(0, data)
    assert bytes(rig.b.read(0, len(data))) == data


def test_an_empty_write_and_read_at_the_end_are_fine(rig: WindowRig) -> None:
    rig.a.write(rig.a.tx_bytes, b"")
    assert bytes(rig.a.read(rig.a.rx_bytes, 0)) == b""


@pytest.mark.parametrize("offset", [-1, -4096])
def test_a_negative_offset_is_refused(rig: WindowRig, offset: int) -> None:
    with pytest.raises(Refused):
        rig.a.write(offset, b"x")
    with pytest.raises(Refused):
        rig.a.read(offset, 1)
    with pytest.raises(Refused):
        rig.a.publish(offset * 4, 1)
    with pytest.raises(Refused):
        rig.a.acquire(offset * 4)


def test_what_does_not_fit_is_refused_and_nothing_is_written(rig: WindowRig) -> None:
    size = rig.a.tx_bytes
    with pytest.raises(Refused):
        rig.a.write(size - 2, b"abc")
    assert bytes(rig.b.read(size - 2, 2)) == b"\0\0"
    with pytest.raises(Refused):
        rig.a.read(rig.a.rx_bytes - 2, 3)
    with pytest.raises(Refused):
        rig.a.read(0, -1)
    with pytest.raises(Refused):
        rig.a.publish(size, 1)
    with pytest.raises(Refused):
        rig.a.acquire(rig.a.rx_bytes)


@pytest.mark.parametrize("offset", [1, 2, 3, 6])
def test_an_unaligned_word_is_refused(rig: WindowRig, offset: int) -> None:
    with pytest.raises(Refused):
        rig.a.publish(offset, 1)
    with pytest.raises(Refused):
        rig.b.acquire(offset)


@pytest.mark.parametrize("value", [-1, 1 << 32])
def test_a_value_beyond_32_bits_is_refused(rig: WindowRig, value: int) -> None:
    with pytest.raises(Refused):
        rig.a.publish(0, value)
    assert rig.b.acquire(0) == 0


def test_every_buffer_type_is_taken(rig: WindowRig) -> None:
    for data in (b"one", bytearray(b"two"), memoryview(b"xthree")[1:]):
        rig.a.write(0, data)
        assert bytes(rig.b.read(0, len(data))) == bytes(data)


def test_closing_twice_is_harmless(rig: WindowRig) -> None:
    rig.a.close()
    rig.a.close()
