"""The compiled word helper and the pure fallback give the same answers and the same refusals."""

import mmap
import platform
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal import native
from hal.errors import Refused, Unavailable
from hal.native import CompiledWords, PureWords, Words

SIZE = 4096
compiled = pytest.mark.skipif(native.PURE, reason="hal._native is not built here")
pure = pytest.mark.skipif(platform.machine() != "x86_64", reason="the fallback is for x86-64")


@pytest.fixture(params=[pytest.param(False, marks=compiled), pytest.param(True, marks=pure)])
def words(request: pytest.FixtureRequest) -> Iterator[Words]:
    memory = mmap.mmap(-1, SIZE)
    made = native.words(memory, pure=request.param)
    yield made
    made.close()
    memory.close()  # raises BufferError if the words still held it


def test_the_flag_says_which_path_serves(words: Words) -> None:
    assert words.pure == isinstance(words, PureWords)
    assert isinstance(words, CompiledWords | PureWords)


def test_words_are_little_endian(words: Words) -> None:
    words.store32_release(8, 0x0102_0304)
    assert words.copy_from(8, 4) == b"\x04\x03\x02\x01"
    words.store64(16, 0x0102_0304_0506_0708)
    assert words.copy_from(16, 8) == bytes(range(8, 0, -1))


def test_a_copy_goes_in_and_comes_out(words: Words) -> None:
    words.copy_to(3, memoryview(b"xabcx")[1:4])
    assert words.copy_from(2, 5) == b"\0abc\0"
    assert words.copy_from(SIZE, 0) == b""


def test_a_full_barrier_can_be_asked_for(words: Words) -> None:
    words.full_barrier()


@pytest.mark.parametrize("offset", [-4, -1, 1, 2, SIZE - 2, SIZE, 1 << 40])
def test_a_32_bit_word_outside_or_unaligned_is_refused(words: Words, offset: int) -> None:
    with pytest.raises(Refused):
        words.load32_acquire(offset)
    with pytest.raises(Refused):
        words.store32_release(offset, 1)


@pytest.mark.parametrize("offset", [-8, 4, SIZE - 4, SIZE])
def test_a_64_bit_word_outside_or_unaligned_is_refused(words: Words, offset: int) -> None:
    with pytest.raises(Refused):
        words.load64(offset)
    with pytest.raises(Refused):
        words.store64(offset, 1)


@pytest.mark.parametrize("value", [-1, 1 << 32])
def test_a_value_that_does_not_fit_is_refused_and_nothing_is_stored(
    words: Words, value: int
) -> None:
    with pytest.raises(Refused):
        words.store32_release(0, value)
    assert words.load32_acquire(0) == 0


def test_a_copy_that_does_not_fit_is_refused(words: Words) -> None:
    with pytest.raises(Refused):
        words.copy_to(SIZE - 1, b"ab")
    with pytest.raises(Refused):
        words.copy_from(SIZE - 1, 2)
    with pytest.raises(Refused):
        words.copy_from(0, -1)


def test_after_close_every_access_is_refused(words: Words) -> None:
    words.close()
    with pytest.raises(Refused):
        words.load32_acquire(0)
    with pytest.raises(Refused):
        words.store64(0, 1)


@pytest.mark.parametrize("ask_pure", [pytest.param(False, marks=compiled), True])
def test_a_read_only_buffer_can_be_read_and_not_written(ask_pure: bool) -> None:
    memory = mmap.mmap(-1, SIZE)
    memory[:4] = b"\x01\0\0\0"
    made = native.words(memoryview(memory).toreadonly(), pure=ask_pure)
    assert made.load32_acquire(0) == 1
    for store in (
        lambda: made.store32_release(0, 2),
        lambda: made.store64(0, 2),
        lambda: made.copy_to(0, b"x"),
    ):
        with pytest.raises(Refused, match="read-only"):
            store()
    assert made.load32_acquire(0) == 1


@pytest.mark.parametrize("size", [0, 4, 12])
def test_a_buffer_that_does_not_divide_into_64_bit_words_is_refused(size: int) -> None:
    with pytest.raises(Refused, match="multiple of 8"):
        native.words(bytearray(size))


def test_without_the_helper_another_processor_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "_compiled", None)
    monkeypatch.setattr(native, "_X86_64", False)
    with pytest.raises(Unavailable, match=r"hal\._native is required .* build_ext"):
        native.words(bytearray(8))


def test_without_the_helper_x86_64_goes_on_with_the_fallback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "_compiled", None)
    monkeypatch.setattr(native, "_X86_64", True)
    assert native.words(bytearray(8)).pure


STEP = st.tuples(
    st.sampled_from(["load32", "store32", "load64", "store64", "to", "from"]),
    st.integers(-8, 80),
    st.integers(-1, 1 << 64),
    st.binary(max_size=24),
)


def run(words: Words, step: tuple[str, int, int, bytes]) -> object:
    what, offset, value, data = step
    try:
        match what:
            case "load32":
                return words.load32_acquire(offset)
            case "store32":
                return words.store32_release(offset, value)
            case "load64":
                return words.load64(offset)
            case "store64":
                return words.store64(offset, value)
            case "to":
                return words.copy_to(offset, data)
            case _:
                return words.copy_from(offset, len(data))
    except Refused as exc:
        return str(exc)


@compiled
@pure
@given(st.lists(STEP, max_size=30))
def test_both_paths_give_the_same_answers_and_leave_the_same_bytes(
    steps: list[tuple[str, int, int, bytes]],
) -> None:
    first, second = bytearray(64), bytearray(64)
    one, two = native.words(first), native.words(second, pure=True)
    assert [run(one, step) for step in steps] == [run(two, step) for step in steps]
    assert first == second
    one.close()
    two.close()
