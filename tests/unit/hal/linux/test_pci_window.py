"""A BAR as a window: what is refused, what is formatted, and what a device that vanishes gives."""

import mmap
import struct

import pytest

from firmware.loop import Loop
from hal.bar_layout import MAGIC, BarLayout
from hal.errors import Absent, DeviceGone, Refused, Unavailable
from hal.linux.clock import LinuxClock
from hal.linux.pci_window import (
    BarWindow,
    bar_of,
    find_bar,
    open_mapped_window,
    open_pci_window,
    pci_half_bytes,
)
from hal.linux.polled_bell import PolledBell
from hal.registry import Registry, World
from protocol.crc import crc32c
from tests.contract.backends_window import BAR_BYTES, fake_function

TARGET = "0000:01:00.0/bar2"


def in_memory(content=b"", size=BAR_BYTES):
    mapping = mmap.mmap(-1, size)
    mapping[: len(content)] = content
    return mapping


def test_the_header_is_the_one_of_the_specification():
    """Written by hand from SPEC 14.6, for 16 MiB: two halves of 2047 pages."""
    header = bytes.fromhex(
        "41504642 0100 3000 0000000100000000 00f07f0000000000 0010000000000000 0000800000000000"
        "00000000"
    )
    layout = BarLayout.of(16 << 20)
    assert layout.half_bytes == 2047 * 4096
    assert layout.header() == header + struct.pack("<I", crc32c(header))


@pytest.mark.parametrize("size", [0, 4096, 3 * 4096 - 1, (1 << 33) + 1])
def test_a_memory_that_cannot_be_divided_is_refused(size):
    with pytest.raises(Refused, match=str(size)):
        BarLayout.of(size)


def test_whoever_comes_first_writes_the_header_into_empty_memory():
    for first in ("a", "b"):
        mapping = in_memory()
        BarWindow(mapping, first, "x")
        assert mapping[:48] == BarLayout.of(BAR_BYTES).header()


def test_side_a_formats_what_an_earlier_user_left_and_side_b_refuses_it():
    rubbish = b"\x13" * 8192
    with pytest.raises(Refused, match="0x13131313, not 0x42465041"):
        BarWindow(in_memory(rubbish), "b", "x")
    mapping = in_memory(rubbish)
    BarWindow(mapping, "a", "x")
    assert mapping[:48] == BarLayout.of(BAR_BYTES).header()
    assert mapping[48:4096] == bytes(4048)
    assert mapping[4096:8192] == rubbish[4096:]  # the halves are their owners'


def test_an_end_that_sees_another_size_is_refused_with_both_sizes():
    other = BarLayout.of(BAR_BYTES // 2 // 4096 * 4096)
    with pytest.raises(Refused, match=f"sees {other.size_bytes} B .* we see {BAR_BYTES} B"):
        BarWindow(in_memory(other.header()), "b", "x")


def test_a_header_of_another_version_or_with_a_wrong_bit_is_refused():
    good = bytearray(BarLayout.of(BAR_BYTES).header())
    version = bytes(good[:4]) + b"\x02" + bytes(good[5:])
    with pytest.raises(Refused, match="version 2"):
        BarWindow(in_memory(version), "b", "x")
    good[16] ^= 1
    with pytest.raises(Refused, match="CRC"):
        BarWindow(in_memory(bytes(good)), "b", "x")


def test_all_ones_at_the_opening_is_a_device_that_is_not_there():
    for side in ("a", "b"):
        with pytest.raises(DeviceGone, match="the link is down"):
            BarWindow(
                in_memory(b"\xff" * BAR_BYTES), side, "x", why_gone=lambda: "the link is down"
            )


@pytest.mark.parametrize("pattern", [b"\xff", b"\0"], ids=["ones", "zeros"])
def test_an_index_that_reads_as_ones_or_zeros_is_checked_against_the_header(pattern):
    mapping = in_memory()
    window = BarWindow(mapping, "a", "0000:01:00.0/bar2", why_gone=lambda: "removed")
    other = BarWindow(mapping, "b", "x")
    other.publish(0x40, 0xFFFF_FFFF)
    assert window.acquire(0x40) == 0xFFFF_FFFF  # a real value is given as it is
    assert window.acquire(0x44) == 0
    mapping[:] = pattern * BAR_BYTES
    with pytest.raises(DeviceGone, match=r"bar2.*removed"):
        window.acquire(0x40)
    with pytest.raises(DeviceGone):
        window.ring_count("b")


def test_after_close_nothing_is_reached_and_a_view_that_was_given_lives_on():
    mapping = in_memory()
    window = BarWindow(mapping, "a", "x")
    view = window.read(0, 4)
    window.close()
    for call in (
        lambda: window.write(0, b"x"),
        lambda: window.read(0, 1),
        lambda: window.acquire(0),
        lambda: window.publish(0, 1),
    ):
        with pytest.raises(Unavailable, match="closed"):
            call()
    assert bytes(view) == bytes(4)


# --- by sysfs ---


def test_a_function_is_found_below_its_port_whatever_its_bus_number(tmp_path):
    port = tmp_path / "0000:00:10.0"
    fake_function(port, "0000:07:00.0")
    assert find_bar("0000:00:10.0/00.0/bar2", sysfs=tmp_path) == (port / "0000:07:00.0", 2)
    window = open_pci_window("0000:00:10.0/00.0/bar2", "a", sysfs=tmp_path)
    assert window.tx_bytes == pci_half_bytes("0000:00:10.0/00.0/bar2", sysfs=tmp_path)
    assert (port / "0000:07:00.0" / "enable").read_text() == "1"
    window.close()


def test_an_empty_slot_an_absent_function_and_an_absent_bar_are_absent(tmp_path):
    device = fake_function(tmp_path)
    (tmp_path / "0000:00:10.0").mkdir()
    with pytest.raises(Absent, match="the slot is empty"):
        open_pci_window("0000:00:10.0/00.0/bar2", "a", sysfs=tmp_path)
    with pytest.raises(Absent, match=r"no PCI function 0000:02"):
        open_pci_window("0000:02:00.0/bar2", "a", sysfs=tmp_path)
    with pytest.raises(Absent, match="no memory BAR 0"):
        open_pci_window("0000:01:00.0/bar0", "a", sysfs=tmp_path)
    assert (device / "enable").read_text() == "0"  # what is refused changes nothing


def test_a_bar_smaller_than_the_board_says_is_refused_with_both_sizes(tmp_path):
    fake_function(tmp_path)
    with pytest.raises(Unavailable, match=f"has {BAR_BYTES} B, .* at least {BAR_BYTES + 4096} B"):
        open_pci_window(TARGET, "a", at_least_bytes=BAR_BYTES + 4096, sysfs=tmp_path)


@pytest.mark.parametrize("target", ["0000:01:00.0", "0000:01:00.0/bar6", "1:0/bar2", "x/../bar2"])
def test_a_target_that_names_no_bar_is_refused(tmp_path, target):
    with pytest.raises(Refused):
        open_pci_window(target, "a", sysfs=tmp_path)


@pytest.mark.parametrize(
    "line", ["", "0x10 0x1f", "x y z", "-1 0x10 0x200", "0x20 0x10 0x200", "0x1_0 0x20 0x0", "\xff"]
)
def test_a_line_of_resource_that_no_kernel_writes_is_told(tmp_path, line):
    (tmp_path / "resource").write_text(f"{line}\n", encoding="latin-1")
    with pytest.raises(Unavailable, match="resource: line 0"):
        bar_of(tmp_path, 0)


def test_why_a_device_is_gone_is_what_config_space_says(tmp_path):
    device = fake_function(tmp_path)
    window = open_pci_window(TARGET, "a", sysfs=tmp_path)
    window._whole[:4096] = b"\xff" * 4096
    with pytest.raises(DeviceGone, match="something else wrote it"):
        window.check_there()
    (device / "config").write_bytes(b"\xff" * 64)
    with pytest.raises(DeviceGone, match="the link is down"):
        window.check_there()
    (device / "config").unlink()
    with pytest.raises(DeviceGone, match="the kernel has removed it"):
        window.check_there()
    window.close()


def test_a_file_shorter_than_asked_for_is_unavailable(tmp_path):
    path = tmp_path / "short"
    path.write_bytes(bytes(8192))
    with pytest.raises(Unavailable, match="mapping 16384 B"):
        open_mapped_window(str(path), "a", at_least_bytes=16384)
    with pytest.raises(Absent):
        open_mapped_window(str(tmp_path / "absent"), "a")


# --- doorbell and registry ---


@pytest.fixture
def loop():
    clock = LinuxClock()
    made = Loop(clock)
    yield made
    made.close()
    clock.close()


def test_the_bell_of_a_device_that_vanishes_wakes_its_user_and_says_why(loop):
    mapping = in_memory()
    window = BarWindow(mapping, "a", "x", why_gone=lambda: "removed")
    bell = PolledBell(window, loop)
    heard = []

    def ready(_events):
        try:
            bell.clear()
        except DeviceGone as exc:
            heard.append(str(exc))
            loop.stop()

    loop.watch(bell.handle, 1, ready)
    mapping[0:4] = struct.pack("<I", MAGIC ^ 1)
    loop.run()
    assert "removed" in heard[0]
    with pytest.raises(DeviceGone):
        bell.ring()
    bell.close()
    window.close()


def test_the_registry_opens_both_sides_of_a_mapped_file(loop, tmp_path):
    path = tmp_path / "shared"
    path.write_bytes(bytes(BAR_BYTES))
    registry = Registry(World(reactor=loop))
    opened = []
    for side in ("a", "b"):
        registry.submit_open_window(f"map:{path}?side={side}", 0, 0, opened.append)
    registry.submit_open_window(f"map:{path}.absent?side=a", 0, 0, opened.append)
    loop.call_later(1_000_000, loop.stop)
    loop.run()
    (a, bell_a), (b, bell_b), error = opened
    a.write(0, b"through")
    assert bytes(b.read(0, 7)) == b"through"
    assert isinstance(error, Absent)
    with pytest.raises(Refused, match="one of a, b"):
        registry.submit_open_window(f"map:{path}?side=c", 0, 0, opened.append)
    for part in (bell_a, bell_b, a, b):
        part.close()
