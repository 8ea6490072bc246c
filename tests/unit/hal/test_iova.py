"""Device addresses: given out inside the ranges, never twice, and again once they are back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import Refused, StoreFull
from hal.iova import IOVA_LOWEST, IovaAllocator

PAGE = 4096
# what Linux 6.1 names for an Intel IOMMU of 39 bits: all but the window of MSI
INTEL = ((0, 0xFEDF_FFFF), (0xFEF0_0000, (1 << 39) - 1))


def test_the_window_of_msi_is_never_given_out() -> None:
    allocator = IovaAllocator(INTEL, PAGE)
    below = 0xFEE0_0000 - IOVA_LOWEST
    assert allocator.allocate(below) == IOVA_LOWEST
    assert allocator.allocate(PAGE) == 0xFEF0_0000


def test_zero_is_never_given_out() -> None:
    assert IovaAllocator(((0, PAGE * 32 - 1),), PAGE).allocate(PAGE) == IOVA_LOWEST


def test_a_hole_is_filled_before_the_end_is_used() -> None:
    allocator = IovaAllocator(INTEL, PAGE)
    first, second, third = (allocator.allocate(n * PAGE) for n in (1, 2, 1))
    assert (second, third) == (first + PAGE, first + 3 * PAGE)
    allocator.free(second)
    assert allocator.allocate(3 * PAGE) == third + PAGE
    assert allocator.allocate(PAGE) == second
    assert allocator.allocate(PAGE) == second + PAGE


def test_a_devices_reach_is_kept() -> None:
    allocator = IovaAllocator(INTEL, PAGE)
    reach = 1 << 28
    taken = allocator.allocate(reach - IOVA_LOWEST - PAGE, 28)
    assert allocator.allocate(PAGE, 28) == reach - PAGE
    with pytest.raises(StoreFull, match="2\\^28"):
        allocator.allocate(PAGE, 28)
    assert allocator.allocate(PAGE) == reach
    allocator.free(taken)
    assert allocator.allocate(PAGE, 28) == taken


def test_ranges_that_cut_pages_shrink_to_whole_ones() -> None:
    allocator = IovaAllocator(((0x2_0800, 0x2_27FF), (0x4_0000, 0x4_0FFE)), PAGE)
    assert allocator.ranges == ((0x2_1000, 0x2_1FFF),)
    with pytest.raises(Refused, match="no usable"):
        IovaAllocator(((0x2_0800, 0x2_17FF),), PAGE)


@pytest.mark.parametrize(("size", "bits"), [(0, 64), (-PAGE, 64), (PAGE - 1, 64), (PAGE, 0)])
def test_what_makes_no_sense_is_refused(size: int, bits: int) -> None:
    with pytest.raises(Refused):
        IovaAllocator(INTEL, PAGE).allocate(size, bits)


def test_what_is_not_out_can_not_come_back() -> None:
    allocator = IovaAllocator(INTEL, PAGE)
    at = allocator.allocate(PAGE)
    allocator.free(at)
    with pytest.raises(Refused):
        allocator.free(at)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("take"), st.integers(1, 40), st.sampled_from([18, 20, 64])),
            st.tuples(st.just("give"), st.integers(0, 100), st.just(0)),
        ),
        max_size=60,
    )
)
def test_pieces_never_overlap_and_stay_within(steps: list[tuple[str, int, int]]) -> None:
    ranges = ((IOVA_LOWEST, IOVA_LOWEST + 90 * PAGE - 1), (1 << 20, (1 << 20) + 50 * PAGE - 1))
    allocator = IovaAllocator(ranges, PAGE)
    out: dict[int, int] = {}
    for what, number, bits in steps:
        if what == "give":
            if out:
                at = sorted(out)[number % len(out)]
                allocator.free(at)
                del out[at]
            continue
        size = number * PAGE
        try:
            at = allocator.allocate(size, bits)
        except StoreFull:
            continue
        assert at % PAGE == 0
        assert at + size <= 1 << bits
        assert any(first <= at and at + size - 1 <= last for first, last in ranges)
        assert all(at + size <= other or other + out[other] <= at for other in out)
        out[at] = size
    assert allocator.taken == len(out)
