"""Announcements of the kernel, as bytes. Ref: lib/kobject_uevent.c."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware.loop import Loop
from hal.linux.clock import LinuxClock
from hal.linux.uevents import Uevent, Uevents, parse_uevent

# as Linux 6.1 sends them when QEMU plugs an edu behind a root port
ADD = (
    b"add@/devices/pci0000:00/0000:00:1c.2/0000:03:00.0\0ACTION=add\0"
    b"DEVPATH=/devices/pci0000:00/0000:00:1c.2/0000:03:00.0\0SUBSYSTEM=pci\0PCI_CLASS=FF00\0"
    b"PCI_ID=1234:11E8\0PCI_SUBSYS_ID=1AF4:1100\0PCI_SLOT_NAME=0000:03:00.0\0"
    b"MODALIAS=pci:v00001234d000011E8sv00001AF4sd00001100bc00scFFi00\0SEQNUM=2012\0"
)


def test_an_announcement_is_taken_apart() -> None:
    found = parse_uevent(ADD)
    assert found is not None
    assert (found.action, found.values["PCI_SLOT_NAME"]) == ("add", "0000:03:00.0")
    assert found.path == "/devices/pci0000:00/0000:00:1c.2/0000:03:00.0"
    assert found.values["SEQNUM"] == "2012"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0",
        b"libudev\0\xfe\xed\xca\xfe",  # udev's own, of group 2
        b"add@",
        b"add@devices/x\0ACTION=add\0",
        b"add@/devices/x\0ACTION=remove\0",
        b"add@/devices/x\0",
    ],
)
def test_what_is_no_announcement_is_none(data: bytes) -> None:
    assert parse_uevent(data) is None


@given(st.binary(max_size=200))
def test_any_bytes_are_taken_apart_or_refused(data: bytes) -> None:
    found = parse_uevent(data)
    assert found is None or found.path.startswith("/")


def test_only_the_wanted_subsystem_and_the_kernel_itself_are_heard() -> None:
    class Sock:
        """Gives what a netlink socket would."""

        def __init__(self, messages: list[tuple[bytes, tuple[int, int]]]) -> None:
            self.messages = messages

        def recvfrom(self, _size: int) -> tuple[bytes, tuple[int, int]]:
            if not self.messages:
                raise BlockingIOError
            message = self.messages.pop(0)
            if message[0] == b"lost":
                raise OSError(105, "No buffer space available")
            return message

        def fileno(self) -> int:
            return 3

    clock = LinuxClock()
    loop = Loop(clock)
    heard: list[Uevent] = []
    lost: list[bool] = []
    listener = Uevents(loop, "pci", heard.append, lambda: lost.append(True))
    real: socket.socket = listener._sock
    forged = (ADD, (4711, 1))
    other = (ADD.replace(b"SUBSYSTEM=pci", b"SUBSYSTEM=usb"), (0, 1))
    listener._sock = Sock([forged, other, (b"lost", (0, 1)), (ADD, (0, 1))])  # type: ignore[assignment]
    listener._ready(0)  # type: ignore[arg-type]
    listener._sock = real
    listener.close()
    listener.close()
    loop.close()
    clock.close()
    assert len(heard) == 1
    assert (listener.refused, listener.overflows, lost) == (1, 1, [True])
