"""Single accesses to memory that stands for a device's."""

import mmap
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import Refused
from hal.native_mmio import ONES32, ONES64, MmioWords

SIZE = 4096


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, SIZE) as made:
        yield made


@pytest.fixture
def words(memory: mmap.mmap) -> Iterator[MmioWords]:
    made = MmioWords(memory, "BAR 0")
    yield made
    made.close()


def test_words_lie_little_endian_at_their_offset(memory: mmap.mmap, words: MmioWords) -> None:
    words.write32(4, 0x1122_3344)
    words.write64(16, 0x0102_0304_0506_0708)
    assert memory[:24].hex() == "0000000044332211" + "00" * 8 + "0807060504030201"
    assert words.read32(4) == 0x1122_3344
    assert words.read64(16) == 0x0102_0304_0506_0708
    words.write32(SIZE - 4, ONES32)
    words.write64(SIZE - 8, ONES64)
    words.barrier()
    assert words.read64(SIZE - 8) == ONES64


@pytest.mark.parametrize("offset", [-4, 1, 2, SIZE, SIZE - 2, 1 << 40])
def test_a_word_outside_or_unaligned_is_refused(words: MmioWords, offset: int) -> None:
    for access in (
        lambda: words.read32(offset),
        lambda: words.write32(offset, 0),
        lambda: words.read64(offset),
        lambda: words.write64(offset, 0),
        lambda: words.copy_to(offset, b"1234"),
        lambda: words.copy_from(offset, 4),
    ):
        with pytest.raises(Refused, match="BAR 0"):
            access()


def test_a_wide_word_is_aligned_to_itself(words: MmioWords) -> None:
    with pytest.raises(Refused, match="aligned to 8"):
        words.read64(4)
    with pytest.raises(Refused, match="aligned to 8"):
        words.write64(12, 0)


@pytest.mark.parametrize("value", [-1, 1 << 32])
def test_a_value_that_does_not_fit_is_refused(words: MmioWords, value: int) -> None:
    with pytest.raises(Refused, match="32 bits"):
        words.write32(0, value)
    with pytest.raises(Refused, match="64 bits"):
        words.write64(0, value << 32)


@given(st.integers(0, SIZE // 4), st.binary(max_size=200))
def test_copies_go_in_and_come_out_and_touch_nothing_else(word: int, data: bytes) -> None:
    data = data[: len(data) // 4 * 4]
    offset = word * 4
    with mmap.mmap(-1, SIZE) as memory:
        words = MmioWords(memory, "BAR 0")
        if offset + len(data) > SIZE:
            with pytest.raises(Refused):
                words.copy_to(offset, data)
            with pytest.raises(Refused):
                words.copy_from(offset, len(data))
            data = b""
        words.copy_to(min(offset, SIZE), data)
        assert words.copy_from(min(offset, SIZE), len(data))[0] == data
        assert memory[:].replace(b"\0", b"") == data.replace(b"\0", b"")
        words.close()


@pytest.mark.parametrize(
    ("data", "ones"),
    [
        (b"", False),
        (b"\xff" * 4, True),
        (b"\xff" * 20, True),
        (b"\xff" * 19 + b"\xfe", False),
        (b"\xfe" + b"\xff" * 19, False),
        (b"\xff" * 8 + b"\xfe" + b"\xff" * 11, False),
    ],
)
def test_a_copy_says_whether_it_is_nothing_but_ones(
    memory: mmap.mmap, words: MmioWords, data: bytes, ones: bool
) -> None:
    for offset in (0, 4, 8):
        memory[:32] = bytes(32)
        memory[offset : offset + len(data)] = data
        assert words.copy_from(offset, len(data)) == (data, ones)


def test_memory_for_reading_is_not_written() -> None:
    words = MmioWords(bytes(64), "BAR 2")
    for access in (
        lambda: words.write32(0, 1),
        lambda: words.write64(0, 1),
        lambda: words.copy_to(0, b"1234"),
        lambda: words.write32_loop(0, 1, 1),
    ):
        with pytest.raises(Refused, match="reading only"):
            access()
    assert words.read32(0) == 0


def test_after_close_there_is_nothing(memory: mmap.mmap) -> None:
    words = MmioWords(memory, "BAR 0")
    words.close()
    words.close()
    for access in (lambda: words.read32(0), lambda: words.write32(0, 1), lambda: words.read64(0)):
        with pytest.raises(Refused, match="closed"):
            access()


def test_the_loops_of_the_benchmark_check_as_well(words: MmioWords) -> None:
    words.write32_loop(8, 9, 3)
    assert words.read32(8) == 9
    words.read32_loop(8, 3)
    with pytest.raises(Refused):
        words.read32_loop(SIZE, 1)
    with pytest.raises(Refused):
        words.write32_loop(-4, 1, 1)
