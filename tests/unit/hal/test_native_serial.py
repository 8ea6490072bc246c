"""The serial line beyond its contract: what it refuses, who may share it, what it leaves."""

import os

import pytest

from hal.errors import LinkDown, Refused, Unavailable
from hal.linux.serial import SerialLine


@pytest.fixture
def pty():
    master, slave = os.openpty()
    path = os.ttyname(slave)
    yield master, path
    os.close(slave)
    os.close(master)


@pytest.mark.parametrize("baud", [0, -9600, 299, 4_000_001])
def test_a_baud_rate_that_no_uart_has_is_refused(pty, baud: int) -> None:
    with pytest.raises(Refused, match="baud"):
        SerialLine(pty[1], baud=baud)


def test_a_line_that_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(Unavailable, match="nowhere"):
        SerialLine(str(tmp_path / "nowhere"), baud=115200)


def test_a_file_is_no_serial_line(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    with pytest.raises(Unavailable, match="file"):
        SerialLine(str(path), baud=115200)


def test_a_second_user_of_the_line_is_kept_out_and_let_in_after_close(pty) -> None:
    first = SerialLine(pty[1], baud=115200)
    with pytest.raises(Unavailable, match="lock"):
        SerialLine(pty[1], baud=115200)
    first.close()
    SerialLine(pty[1], baud=921600).close()


def test_a_closed_line_is_down_and_holds_nothing(pty) -> None:
    before = len(os.listdir("/proc/self/fd"))
    line = SerialLine(pty[1], baud=115200)
    line.close()
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(LinkDown, match="closed"):
        line.read()
    with pytest.raises(LinkDown, match="closed"):
        line.write(b"x")


def test_a_master_that_goes_away_is_a_link_down() -> None:
    master, slave = os.openpty()
    line = SerialLine(os.ttyname(slave), baud=115200)
    os.close(slave)
    os.close(master)
    with pytest.raises(LinkDown):
        line.read()
    with pytest.raises(LinkDown):
        line.write(b"x")
    line.close()
