"""The shared-memory window beyond its contract: seals, sides, protection, closing."""

import fcntl
import os

import pytest

from hal.errors import Refused, Unavailable
from hal.linux.shm import (
    GATE_BYTES,
    GATE_OPEN,
    GATE_SHUT,
    WINDOW_MIN_BYTES,
    EventfdDoorbell,
    ShmWindow,
    create_window_memfd,
    shm_window_from_fds,
)

SIZE = 4 * WINDOW_MIN_BYTES


@pytest.fixture
def memfd():
    fd = create_window_memfd("test", SIZE)
    yield fd
    os.close(fd)


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_sealed_window_can_not_change_its_size(memfd: int) -> None:
    for size in (0, SIZE // 2, 2 * SIZE):
        with pytest.raises(PermissionError):
            os.ftruncate(memfd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)  # nor get more seals
    assert os.fstat(memfd).st_size == SIZE + GATE_BYTES


@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW])
def test_a_memfd_without_all_the_seals_is_refused_and_closed(seals: int) -> None:
    fd = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SIZE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    with pytest.raises(Refused, match="seals"):
        ShmWindow(fd, "card")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_file_that_is_no_memfd_is_refused(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(SIZE))
    with pytest.raises(Refused, match="no memfd"):
        ShmWindow(os.open(path, os.O_RDWR), "cnm")


@pytest.mark.parametrize("size", [-1, 0, 4096, WINDOW_MIN_BYTES + 1, 1 << 33])
def test_a_size_without_two_halves_of_pages_is_refused(size: int) -> None:
    with pytest.raises(Refused, match="window of"):
        create_window_memfd("odd", size)


def test_refused_descriptors_are_all_closed() -> None:
    before = open_fds()
    fd = os.memfd_create("unsealed", 0)
    with pytest.raises(Refused):
        shm_window_from_fds(fd, os.eventfd(0), os.eventfd(0), "card")
    assert open_fds() == before


def test_window_and_doorbell_close_what_they_took() -> None:
    before = open_fds()
    fd = create_window_memfd("test", SIZE)
    window, bell = shm_window_from_fds(fd, os.eventfd(0), os.eventfd(0), "card")
    window.close()
    bell.close()
    assert open_fds() == before


def test_the_card_has_the_first_half_and_the_cnm_the_second(memfd: int) -> None:
    card, cnm = ShmWindow(os.dup(memfd), "card"), ShmWindow(os.dup(memfd), "cnm")
    card.write(0, b"card")
    cnm.write(0, b"cnm!")
    assert os.pread(memfd, 4, 0) == b"card"
    assert os.pread(memfd, 4, SIZE // 2) == b"cnm!"
    card.close()
    cnm.close()


def test_the_peers_half_is_mapped_read_only() -> None:
    window = ShmWindow(create_window_memfd("protection", SIZE), "card")
    with open("/proc/self/maps") as maps:
        rights = sorted(line.split()[1] for line in maps if "memfd:apf-protection" in line)
    assert rights == ["r--s", "r--s", "rw-s"]  # the peer's half, the gate, our own half
    window.close()


def test_a_shut_gate_is_a_link_that_is_down_and_open_again_shows_what_was_there(memfd: int) -> None:
    card, cnm = ShmWindow(os.dup(memfd), "card"), ShmWindow(os.dup(memfd), "cnm")
    card.write(64, b"before")
    card.publish(0, 7)
    os.pwrite(memfd, bytes([GATE_SHUT]), SIZE)
    assert cnm.acquire(0) == 0xFFFF_FFFF
    assert bytes(cnm.read(64, 6)) == b"\xff" * 6
    card.write(64, b"during")
    card.publish(0, 8)
    for use in (
        lambda: card.publish(1, 0),
        lambda: card.publish(0, 1 << 32),
        lambda: card.write(-1, b"x"),
        lambda: card.read(SIZE, 1),
        lambda: card.acquire(2),
    ):
        with pytest.raises(Refused):
            use()
    os.pwrite(memfd, bytes([GATE_OPEN]), SIZE)
    assert cnm.acquire(0) == 7
    assert bytes(cnm.read(64, 6)) == b"before"
    card.close()
    cnm.close()


def test_after_close_the_window_says_so_and_late_views_stay_safe(memfd: int) -> None:
    card, cnm = ShmWindow(os.dup(memfd), "card"), ShmWindow(os.dup(memfd), "cnm")
    card.write(0, b"late")
    view = cnm.read(0, 4)
    cnm.close()
    assert bytes(view) == b"late"
    view.release()
    for use in (
        lambda: cnm.read(0, 1),
        lambda: cnm.write(0, b"x"),
        lambda: cnm.acquire(0),
        lambda: cnm.publish(0, 1),
    ):
        with pytest.raises(Unavailable, match="closed"):
            use()
    card.close()


def test_a_doorbell_whose_counter_is_full_still_takes_a_ring() -> None:
    tx = os.eventfd(0, os.EFD_NONBLOCK)
    bell = EventfdDoorbell(os.eventfd(0), os.dup(tx))
    os.eventfd_write(tx, 2**64 - 2)
    bell.ring()
    assert os.eventfd_read(tx) == 2**64 - 2
    os.close(tx)
    bell.close()


def test_a_closed_doorbell_says_so() -> None:
    bell = EventfdDoorbell(os.eventfd(0), os.eventfd(0))
    bell.close()
    for use in (bell.ring, bell.clear):
        with pytest.raises(Unavailable, match="closed"):
            use()
